"""Open files that a VM's process can write: follow no link, read regular files only.

A VM's user may replace any file in the VM's folder by a link to a secret of the reader, by a FIFO
that blocks, or by a device. All other programs must use this module to open files there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polydev.errors import VmError

HINT = "the VM's own process may have put it there: end its session"
KINDS = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


@contextmanager
def open_untrusted(path: Path) -> Iterator[int]:
    """Yield a descriptor of a regular file, whose reads never block.

    Raises FileNotFoundError if there is no file, and VmError if it is not a regular file of the VM
    or cannot be read.
    """
    try:
        descriptor = _open(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise VmError(f"{path.name} cannot be read: {error.strerror}", HINT) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def last_bytes(path: Path, most: int) -> bytes:
    """Return the end of a file; nothing if there is no file. Raises VmError."""
    try:
        with open_untrusted(path) as descriptor:
            size = os.fstat(descriptor).st_size
            return os.pread(descriptor, most, max(0, size - most))
    except FileNotFoundError:
        return b""


@contextmanager
def open_untrusted_folder(path: Path) -> Iterator[int]:
    """Yield a descriptor of a folder, for calls relative to it. Raises OSError."""
    with _reference_to(path) as folder:
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def descriptor_path(descriptor: int) -> Path:
    """Return the path of the file behind an own descriptor."""
    return Path(f"/proc/self/fd/{descriptor}")


def _open(path: Path) -> int:
    """Check the file before opening it.

    Opening a device has effects, and closing another descriptor of the reader's own database would
    drop the reader's locks on it.
    """
    with _reference_to(path.parent) as folder:
        reference = os.open(path.name, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder)
        try:
            _require_own_file(path.name, os.fstat(reference), os.fstat(folder))
            # The descriptor leads to the checked file, even if another one has its name by now.
            return os.open(descriptor_path(reference), os.O_RDONLY | os.O_NONBLOCK)
        finally:
            os.close(reference)


def _require_own_file(name: str, file: os.stat_result, folder: os.stat_result) -> None:
    kind = next((words for is_kind, words in KINDS if is_kind(file.st_mode)), None)
    if kind is not None:
        raise VmError(f"{name} is {kind}; only a regular file is read", HINT)
    if file.st_nlink > 1:
        raise VmError(f"{name} is a hard link: the same file has another name", HINT)
    # The group of a VM's folder is that of the VM's user, who owns no file of the reader. If it is
    # one of the reader's groups, the VM runs as the reader.
    is_anothers = folder.st_gid not in (os.getegid(), *os.getgroups())
    if is_anothers and file.st_uid in (0, os.geteuid()):
        raise VmError(f"{name} is a file that is not the VM's", HINT)


@contextmanager
def _reference_to(folder: Path) -> Iterator[int]:
    """Yield a reference to a folder whose path has no links. Raises OSError that names it."""
    try:
        reference = _walk(folder)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error
    try:
        yield reference
    finally:
        os.close(reference)


def _walk(folder: Path) -> int:
    """Open the parts of a path one by one."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
    first, *others = folder.absolute().parts
    reference = os.open(first, flags)
    for name in others:
        outer = reference
        try:
            reference = os.open(name, flags, dir_fd=outer)
        finally:
            os.close(outer)
    return reference

"""Open files that a VM's process can write: follow no link, read regular files only.

A VM's user may replace whatever lies in its VM's folder: by a link to a secret of the reader, by a
FIFO that blocks, by a device. Everybody else who reads there must open files by this module.
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
    """A descriptor to read a regular file by; a read from it never blocks.

    Raises FileNotFoundError where there is none, and VmError for anything else than a regular
    file of the VM's own, or for one that cannot be read.
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
    """The end of a file; nothing where there is no file. Raises VmError."""
    try:
        with open_untrusted(path) as descriptor:
            size = os.fstat(descriptor).st_size
            return os.pread(descriptor, most, max(0, size - most))
    except FileNotFoundError:
        return b""


@contextmanager
def open_untrusted_folder(path: Path) -> Iterator[int]:
    """A descriptor of a folder, for calls that are relative to it. Raises OSError."""
    with _reference_to(path) as folder:
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def descriptor_path(descriptor: int) -> Path:
    """The file behind a descriptor, for whoever has it."""
    return Path(f"/proc/self/fd/{descriptor}")


def _open(path: Path) -> int:
    """Look before opening: to open a device has effects, and to close another descriptor of the
    reader's own database would drop the locks that the reader has on it.
    """
    with _reference_to(path.parent) as folder:
        reference = os.open(path.name, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder)
        try:
            _require_own_file(path.name, os.fstat(reference), os.fstat(folder))
            # By its descriptor it is what was looked at, whatever has its name by now.
            return os.open(descriptor_path(reference), os.O_RDONLY | os.O_NONBLOCK)
        finally:
            os.close(reference)


def _require_own_file(name: str, file: os.stat_result, folder: os.stat_result) -> None:
    kind = next((words for is_kind, words in KINDS if is_kind(file.st_mode)), None)
    if kind is not None:
        raise VmError(f"{name} is {kind}; only a regular file is read", HINT)
    if file.st_nlink > 1:
        raise VmError(f"{name} is a hard link: the same file has another name", HINT)
    # The group of a VM's folder is that of the VM's user, who owns none of the reader's files.
    # Where it is the reader's own group, the VM runs as the reader's own user.
    is_anothers = folder.st_gid not in (os.getegid(), *os.getgroups())
    if is_anothers and file.st_uid in (0, os.geteuid()):
        raise VmError(f"{name} is a file that is not the VM's", HINT)


@contextmanager
def _reference_to(folder: Path) -> Iterator[int]:
    """The folder, without a link anywhere in its path. Raises OSError that names it."""
    try:
        reference = _walk(folder)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error
    try:
        yield reference
    finally:
        os.close(reference)


def _walk(folder: Path) -> int:
    """Open each part of the path from the one before it."""
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

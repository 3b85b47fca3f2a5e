"""One image's folder: who uses it, whether it is whole, its record, and its repair.

What the folders of a store are to each other, and which verbs there are, is the store's.
"""

from __future__ import annotations

import fcntl
import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from polydev.disk import file_sha256, sync
from polydev.errors import ImageError
from polydev.image_record import (
    BOOT_FILES,
    CMDLINE,
    INITRD,
    KERNEL,
    RECORD,
    ROOTFS,
    ImageRecord,
    manifest_digest,
)
from polydev.vm.config import IN_USE, Accelerator, Ports, VmConfig

log = logging.getLogger(__name__)

Hold = io.FileIO


def _open_lock(folder: Path) -> io.FileIO:
    return io.FileIO(
        folder / IN_USE, "r", opener=lambda path, flags: os.open(path, flags | os.O_CREAT, 0o644)
    )


def hold(folder: Path) -> Hold:
    """Use the folder for as long as the answer is open, in this process or a child.

    Raises FileNotFoundError when a prune took the folder first.
    """
    lock = _open_lock(folder)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not os.path.samestat(os.fstat(lock.fileno()), (folder / IN_USE).stat()):
            raise FileNotFoundError(folder)
    except BaseException:
        lock.close()
        raise
    return lock


@contextmanager
def unless_held(folder: Path) -> Iterator[bool]:
    """Whether nobody holds the folder; if so, nobody can before this ends.

    Raises FileNotFoundError.
    """
    # Whoever asks locks too. They queue on the folder, so as not to take each other for a use.
    queue = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(queue, fcntl.LOCK_EX)
        with _open_lock(folder) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
    finally:
        os.close(queue)


def freed_bytes(folder: Path) -> int:
    """Bytes allocated in a folder; a file that has another name elsewhere frees none."""
    states = [path.lstat() for path in folder.rglob("*")]
    return sum(state.st_blocks * 512 for state in states if state.st_nlink == 1)


def read_record(folder: Path) -> ImageRecord:
    """The record that lies in the folder. Raises ImageError where it is not that image's."""
    path = folder / RECORD
    hint = f"./inv golden.build writes it anew for the same recipe; or remove {folder}"
    try:
        record = ImageRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ImageError(f"cannot read the record {path}: {error}", hint) from error
    if record.digest != folder.name:
        raise ImageError(f"{path} is the record of another image, {record.digest[:12]}", hint)
    return record


def record_text(record: ImageRecord) -> str:
    return f"{record.model_dump_json(indent=2)}\n"


def check_complete(folder: Path, record: ImageRecord) -> None:
    """Raises ImageError unless the boot files are there and give the record's digest."""
    for name in BOOT_FILES:
        path, entry = folder / name, record.files.get(name)
        if entry is None or not path.is_file() or path.stat().st_size != entry.size_bytes:
            raise ImageError(f"cannot add an unfinished image: {path} is not what its record says")
    named = manifest_digest({name: record.files[name].sha256 for name in BOOT_FILES})
    if named != record.digest:
        raise ImageError(f"cannot add image {record.digest[:12]}: its files make it {named[:12]}")


def repair(target: Path, incoming: Path, record: ImageRecord) -> None:
    """Take from `incoming` what is damaged or missing in an image of the same digest.

    File by file: a golden image stays in its place, and every step leaves it less damaged.
    """
    for path in sorted(incoming.iterdir()):
        old = target / path.name
        expected = record.files[path.name].sha256 if path.name in BOOT_FILES else None
        intact = old.exists() and (expected is None or file_sha256(old) == expected)
        if not intact and (expected is None or file_sha256(path) == expected):
            log.warning("image %s: %s was damaged or missing", target.name[:12], path.name)
            path.replace(old)
    try:
        read_record(target)
    except ImageError as error:
        log.warning("image %s: %s", target.name[:12], error.message)
        (incoming / RECORD).replace(target / RECORD)
    sync(target)


def vm_config(image: Path, vm_id: str, folder: Path, accelerator: Accelerator) -> VmConfig:
    """A VM of the image in the folder `image`, on ports that are chosen at its start."""
    return VmConfig(
        vm_id=vm_id,
        folder=folder,
        kernel=image / KERNEL,
        initrd=image / INITRD,
        cmdline=(image / CMDLINE).read_text(),
        rootfs=image / ROOTFS,
        image_digest=image.name,
        ports=Ports(0, 0, 0),
        accelerator=accelerator,
    )

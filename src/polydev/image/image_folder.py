"""The folder of one image: who uses it, its record, whether its files are intact, its repair.

The kernel, not the text of a file, knows which images are in use. Each process that makes, verifies
or runs an image holds a shared `flock` on its `in-use.lock`, which ends with the last process that
inherited it.
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

from polydev.durable_files import sync
from polydev.errors import ImageError
from polydev.file_checksum import file_sha256
from polydev.image_layout import BOOT_FILES, CMDLINE, IN_USE, INITRD, KERNEL, RECORD, ROOTFS
from polydev.image_record import ImageRecord, manifest_digest
from polydev.vm.config import Accelerator, Ports, VmConfig

log = logging.getLogger(__name__)

REBUILD_HINT = "./inv golden.build of the same recipe replaces the damaged file"

Hold = io.FileIO


def _open_lock(folder: Path) -> io.FileIO:
    return io.FileIO(
        folder / IN_USE, "r", opener=lambda path, flags: os.open(path, flags | os.O_CREAT, 0o644)
    )


def hold(folder: Path) -> Hold:
    """Use the image for as long as the returned file is open, in this process or a child.

    Raises FileNotFoundError if a prune removed the folder first.
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
    """Yield whether nobody uses the image; if so, nobody can start to before this block ends.

    Raises FileNotFoundError.
    """
    # Processes that ask take the lock too. They queue on the folder, so that none of them takes
    # another one for a user of the image.
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
    """Bytes that the folder's removal would free: files with hard links elsewhere free none."""
    states = [path.lstat() for path in folder.rglob("*")]
    return sum(state.st_blocks * 512 for state in states if state.st_nlink == 1)


def read_record(folder: Path) -> ImageRecord:
    """Return the record in the folder. Raises ImageError if it is not the record of this image."""
    path = folder / RECORD
    hint = f"./inv golden.build of the same recipe writes it again; or remove {folder}"
    try:
        record = ImageRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ImageError(f"cannot read the image's record {path}: {error}", hint) from error
    if record.digest != folder.name:
        raise ImageError(f"{path} is the record of another image, {record.digest[:12]}", hint)
    return record


def record_text(record: ImageRecord) -> str:
    return f"{record.model_dump_json(indent=2)}\n"


def check_complete(folder: Path, record: ImageRecord) -> None:
    """Raise ImageError unless the boot files are there and result in the record's digest."""
    for name in BOOT_FILES:
        path, entry = folder / name, record.files.get(name)
        if entry is None or not path.is_file() or path.stat().st_size != entry.size_bytes:
            raise ImageError(
                f"cannot add an unfinished image: {path} is missing or has another size than its "
                "record says"
            )
    actual = manifest_digest({name: record.files[name].sha256 for name in BOOT_FILES})
    if actual != record.digest:
        raise ImageError(
            f"cannot add image {record.digest[:12]}: its files are those of image {actual[:12]}"
        )


def require_promotable(folder: Path, record: ImageRecord) -> None:
    """Return if this image passed its verification and its files match its record.

    Reads every boot file to its end and syncs it to the disk. Raises ImageError that names what is
    missing or damaged.
    """
    short = record.digest[:12]
    verify_hint = f"./inv golden.verify {short}"
    if record.verification is None:
        raise ImageError(f"image {short} was never verified", verify_hint)
    if not record.verification.passed:
        cause = record.verification.cause or "no cause recorded"
        raise ImageError(f"image {short} failed its verification: {cause}", verify_hint)
    damaged = f"image {short} is damaged: "
    sums: dict[str, str] = {}
    for name in BOOT_FILES:
        path = folder / name
        expected = record.files[name].sha256 if name in record.files else "none"
        try:
            sums[name] = actual = file_sha256(path)
            sync(path)
        except OSError as error:
            raise ImageError(f"{damaged}{path}: {error.strerror}", REBUILD_HINT) from error
        if actual != expected:
            raise ImageError(
                f"{damaged}{path} has SHA-256 {actual[:12]}, its record says {expected[:12]}",
                REBUILD_HINT,
            )
    if (actual := manifest_digest(sums)) != folder.name:
        raise ImageError(
            f"{damaged}its files and its record are those of image {actual[:12]}", REBUILD_HINT
        )


def repair(target: Path, incoming: Path, record: ImageRecord) -> None:
    """Take from `incoming` what is damaged or missing in an image of the same digest.

    File by file: a golden image stays where it is, and each step leaves it less damaged.
    """
    for path in sorted(incoming.iterdir()):
        old = target / path.name
        expected = record.files[path.name].sha256 if path.name in BOOT_FILES else None
        intact = old.exists() and (expected is None or file_sha256(old) == expected)
        if not intact and (expected is None or file_sha256(path) == expected):
            log.warning("image %s: replaced %s: damaged or missing", target.name[:12], path.name)
            path.replace(old)
    try:
        read_record(target)
    except ImageError as error:
        log.warning("image %s: replaced its record: %s", target.name[:12], error.message)
        (incoming / RECORD).replace(target / RECORD)
    sync(target)


def vm_config(image: Path, vm_id: str, folder: Path, accelerator: Accelerator) -> VmConfig:
    """Return a VM of the image in the folder `image`, with ports that its start chooses."""
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

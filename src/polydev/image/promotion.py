"""Which image is golden: the promotions, the one link that is the truth, the store's lock.

    promotions/000007        link to ../images/<digest>
    promotions/000007.json   the same in words, with the number of the promotion before it
    golden-rootfs.ext4       link to promotions/000007/rootfs.ext4

A promotion is first written in full and only then named by the golden link, which is replaced
by one rename. So a process that is killed anywhere leaves the link on a whole image: the old
one or the new one. A promotion that cannot be reached from the link does not count; it was
killed, or rolled back. These functions know the links; what an image must be like to deserve
one is `require_promotable`, and the verbs are the store's.
"""

from __future__ import annotations

import fcntl
import getpass
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from pydantic import ValidationError

from polydev.disk import file_sha256, sync
from polydev.errors import ImageError
from polydev.image_record import BOOT_FILES, ROOTFS, ImageRecord, Model, manifest_digest

log = logging.getLogger(__name__)

GOLDEN = "golden-rootfs.ext4"
PROMOTIONS = "promotions"
IMAGES = "images"
LOCK = ".lock"
UNFINISHED = ".new"

HOLDER_TRIES = 100
HOLDER_PAUSE_SECONDS = 0.01


class Actor(Model):
    """Who does something: a user of a machine, and the process."""

    user: str
    host: str
    pid: int

    def __str__(self) -> str:
        return f"{self.user}@{self.host}, pid {self.pid}"


class GoldenChange(Model):
    """What a promotion or a rollback did: `digest` is golden now, `was` before it."""

    number: int
    digest: str
    was: str | None
    changed: bool


class Entry(Model):
    """One promotion; `previous` is the number of the one that was golden before it."""

    number: int
    digest: str
    previous: int | None
    at: datetime
    by: Actor


@contextmanager
def store_lock(root: Path, verb: str) -> Iterator[None]:
    """Hold the store for one verb; never waits for another process to finish its own.

    Raises ImageError, naming the holder, when another process has it.
    """
    path = root / LOCK
    try:
        root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ImageError(
            f"cannot lock the image store: {path}: {error.strerror}",
            "run it as the user who owns the store, usually root",
        ) from error
    try:
        _take(descriptor, path, verb)
        holder = f"{verb} by {this_actor()}, since {_now():%Y-%m-%d %H:%M:%S} UTC\n"
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _take(descriptor: int, path: Path, verb: str) -> None:
    # A holder locks first and signs after. Until the name is that of a living process, the
    # text is what a killed holder left, so a refusal that quoted it would blame the wrong one.
    for _ in range(HOLDER_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = path.read_text().strip()
        signed = re.search(r", pid (\d+), since ", holder)
        if signed and Path(f"/proc/{signed[1]}").exists():
            break
        time.sleep(HOLDER_PAUSE_SECONDS)
    raise ImageError(
        f"cannot {verb}: the image store is busy: {holder or 'its holder left no name'}",
        f"run it again once that has ended; {path} says who holds the store",
    )


def _now() -> datetime:
    return datetime.now(timezone.utc)


def this_actor() -> Actor:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return Actor(user=user, host=socket.gethostname(), pid=os.getpid())


def golden_entry(root: Path) -> Entry | None:
    """The promotion that the golden link names; None before the first one.

    Raises ImageError when the link is none of ours or its promotion cannot be read.
    """
    link = root / GOLDEN
    hint = f"move {link} out of the way, then promote an image"
    try:
        target = link.readlink().as_posix()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ImageError(f"{link} is not a link to a promotion", hint) from error
    match = re.fullmatch(rf"{PROMOTIONS}/(\d+)/{re.escape(ROOTFS)}", target)
    if match is None:
        raise ImageError(f"{link} leads to {target}, which is no promotion", hint)
    return read_entry(root, int(match[1]))


def read_entry(root: Path, number: int) -> Entry:
    """Promotion `number`. Raises ImageError when its two halves are missing or disagree."""
    link = root / PROMOTIONS / _name(number)
    words = link.with_name(f"{link.name}.json")
    hint = f"remove {root / GOLDEN} and promote an image: the history then starts anew"
    try:
        entry = Entry.model_validate_json(words.read_bytes())
        linked = link.readlink().name
    except (OSError, ValidationError) as error:
        raise ImageError(f"promotion {number} is damaged: {words}: {error}", hint) from error
    # Numbers only grow; a `previous` that does not would make the history a circle.
    if (entry.number, entry.digest) != (number, linked) or (entry.previous or 0) >= number:
        raise ImageError(f"promotion {number} is damaged: {words} and {link} disagree", hint)
    return entry


def history(root: Path) -> list[Entry]:
    """The golden promotion and every one before it, newest first; [] before the first."""
    golden = golden_entry(root)
    entries = [golden] if golden else []
    while entries and (before := entries[-1].previous) is not None:
        entries.append(read_entry(root, before))
    return entries


def write_entry(root: Path, digest: str, previous: int | None) -> Entry:
    """Write a promotion under a number that no other has; nothing refers to it yet."""
    folder = root / PROMOTIONS
    folder.mkdir(exist_ok=True)
    numbers = (_number(path) for path in folder.iterdir())
    number = max((found for found in numbers if found is not None), default=0) + 1
    entry = Entry(
        number=number,
        digest=digest,
        previous=previous,
        at=_now(),
        by=this_actor(),
    )
    write_durably(folder / f"{_name(number)}.json", f"{entry.model_dump_json(indent=2)}\n")
    (folder / _name(number)).symlink_to(f"../{IMAGES}/{digest}")
    sync(folder)
    return entry


def point_golden(root: Path, number: int) -> None:
    """Let the golden link name promotion `number`: the one step that changes what is golden."""
    fresh = root / f".{GOLDEN}{UNFINISHED}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(f"{PROMOTIONS}/{_name(number)}/{ROOTFS}")
    fresh.replace(root / GOLDEN)
    sync(root)


def remove_dead_entries(root: Path) -> None:
    """Remove the promotions that the golden link does not reach, and what kills left."""
    alive = {entry.number for entry in history(root)}
    (root / f".{GOLDEN}{UNFINISHED}").unlink(missing_ok=True)
    folder = root / PROMOTIONS
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        number = _number(path)
        if path.suffix == UNFINISHED or (number is not None and number not in alive):
            path.unlink()


def _name(number: int) -> str:
    return f"{number:06d}"


def _number(path: Path) -> int | None:
    match = re.fullmatch(r"(\d+)(\.json)?", path.name)
    return int(match[1]) if match else None


def require_promotable(folder: Path, record: ImageRecord) -> None:
    """Return if this very image passed its verification and its files still are what it says.

    Reads every boot file to its end and sees that it is on the disk. Raises ImageError with
    what is missing or damaged.
    """
    short = record.digest[:12]
    again = f"./inv golden.verify {short}"
    if record.verification is None:
        raise ImageError(f"image {short} was never verified", again)
    if not record.verification.passed:
        cause = record.verification.cause or "no cause recorded"
        raise ImageError(f"image {short} failed its verification: {cause}", again)
    rebuild = "./inv golden.build puts the damaged file right when the recipe is the same"
    damaged = f"image {short} is damaged: "
    sums: dict[str, str] = {}
    for name in BOOT_FILES:
        path = folder / name
        expected = record.files[name].sha256 if name in record.files else "none"
        try:
            sums[name] = found = file_sha256(path)
            sync(path)
        except OSError as error:
            raise ImageError(f"{damaged}{path}: {error.strerror}", rebuild) from error
        if found != expected:
            found, expected = found[:12], expected[:12]
            raise ImageError(
                f"{damaged}{path} has sha256 {found}, its record says {expected}", rebuild
            )
    if (named := manifest_digest(sums)) != folder.name:
        raise ImageError(f"{damaged}its files and record are those of {named[:12]}", rebuild)


def write_durably(path: Path, text: str) -> None:
    """Replace a file in one step; when this returns, a power cut does not undo it."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        with fresh.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        with suppress(OSError):
            fresh.unlink()
        raise
    sync(path.parent)

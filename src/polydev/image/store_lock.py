"""The lock of an image store: one verb at a time changes which images there are or are golden."""

from __future__ import annotations

import fcntl
import getpass
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from polydev.errors import ImageError
from polydev.image_layout import STORE_LOCK
from polydev.image_record import RecordModel

WRITE_HINT = "run it as the user who owns the store, usually root"
NAME_TRIES = 100
NAME_PAUSE_SECONDS = 0.01


class Actor(RecordModel):
    """The user and the process that change a store."""

    user: str
    host: str
    pid: int

    def __str__(self) -> str:
        return f"{self.user}@{self.host}, pid {self.pid}"


def this_actor() -> Actor:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return Actor(user=user, host=socket.gethostname(), pid=os.getpid())


@contextmanager
def store_lock(root: Path, verb: str) -> Iterator[None]:
    """Hold the store for one verb, without waiting for another process to release it.

    Raises ImageError, with the name of the other process, if one holds the store.
    """
    path = root / STORE_LOCK
    try:
        root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ImageError(
            f"cannot lock the image store: {path}: {error.strerror}", WRITE_HINT
        ) from error
    try:
        _lock(descriptor, path, verb)
        since = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{verb} by {this_actor()}, since {since}\n".encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path, verb: str) -> None:
    # A process first locks the file and then writes its name into it. Until the name is that of
    # a living process, it is the name of a killed one, which a refusal must not blame.
    for _ in range(NAME_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            owner = path.read_text().strip()
        named = re.search(r", pid (\d+), since ", owner)
        if named and Path(f"/proc/{named[1]}").exists():
            break
        time.sleep(NAME_PAUSE_SECONDS)
    raise ImageError(
        f"cannot {verb}: the image store is busy: {owner or 'another process holds it'}",
        f"run it again once that has ended; {path} names the process",
    )

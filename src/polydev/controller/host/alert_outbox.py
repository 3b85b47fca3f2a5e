"""Messages that are not sent yet, each in a file of its own: they outlive who wrote them.

While a release hands over, two processes look into the folder. Who sends a message holds a lock on
its file, which the kernel takes back when its holder ends, however that ends. So each is sent by
one, and again only where an end came between its sending and its removal.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

MessageKind = Literal["info", "success", "warning", "failure"]

MOST_WAITING = 100
# What was so yesterday would only confuse.
MOST_AGE_SECONDS = 24 * 3600


@dataclass(frozen=True)
class AlertMessage:
    title: str
    body: str
    kind: MessageKind


class OutboxFull(Exception):
    """So many wait already that more would not be read."""


class Outbox:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, message: AlertMessage) -> None:
        """Keep a message until it is sent. Raises OutboxFull and OSError."""
        if len(self.waiting()) >= MOST_WAITING:
            raise OutboxFull
        self._folder.mkdir(mode=0o700, exist_ok=True)
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex}"
        unfinished = self._folder / name
        unfinished.write_text(json.dumps(asdict(message)))
        unfinished.rename(self._folder / f"{name}.json")

    def waiting(self) -> list[Path]:
        """The oldest first."""
        return sorted(self._folder.glob("*.json"))

    @contextmanager
    def taken(self, path: Path) -> Iterator[AlertMessage | None]:
        """A message that nobody else sends meanwhile, and that is removed unless an exception
        leaves this; None where another has it or had it, and where it is not worth sending.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            yield None
            return
        try:
            if not _is_mine(descriptor):
                yield None
                return
            yield _message(descriptor)
            path.unlink()
        finally:
            os.close(descriptor)


def _is_mine(descriptor: int) -> bool:
    """Whether it could be locked, and nobody had sent and removed it before."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(descriptor).st_nlink > 0


def _message(descriptor: int) -> AlertMessage | None:
    status = os.fstat(descriptor)
    if time.time() - status.st_mtime > MOST_AGE_SECONDS:
        return None
    try:
        return AlertMessage(**json.loads(os.read(descriptor, status.st_size)))
    except (ValueError, TypeError):  # cut off by a full disk, or of another release
        return None

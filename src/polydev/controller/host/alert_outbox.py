"""Outbox: a file for each message that is not sent yet, so that messages survive a restart.

During a handover two processes read the folder. The process that sends a message holds a lock on
its file, which the kernel releases when the process ends. So one process sends each message; it is
sent twice only if that process ends after sending and before removing the file.
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
# Older messages are not worth sending.
MOST_AGE_SECONDS = 24 * 3600


@dataclass(frozen=True)
class AlertMessage:
    title: str
    body: str
    kind: MessageKind


class OutboxFull(Exception):
    """Too many messages are waiting."""


class Outbox:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, message: AlertMessage) -> None:
        """Store a message until it is sent. Raises OutboxFull and OSError."""
        if len(self.waiting()) >= MOST_WAITING:
            raise OutboxFull
        self._folder.mkdir(mode=0o700, exist_ok=True)
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex}"
        unfinished = self._folder / name
        unfinished.write_text(json.dumps(asdict(message)))
        unfinished.rename(self._folder / f"{name}.json")

    def waiting(self) -> list[Path]:
        """Return the files of waiting messages, oldest first."""
        return sorted(self._folder.glob("*.json"))

    @contextmanager
    def taken(self, path: Path) -> Iterator[AlertMessage | None]:
        """Lock a message for sending, and remove it afterwards unless an exception is raised.

        None where another process has it or had it, or where it is too old or damaged.
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
    """Return whether the file could be locked, and was not sent and removed before."""
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

"""One verb at a time changes the host or its backups; the others wait for it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from polydev.hosttool.durable import make_folder
from polydev.hosttool.errors import HostError
from polydev.hosttool.paths import Paths

WAIT_SECONDS = 300.0
PAUSE_SECONDS = 0.1


@contextmanager
def alone(paths: Paths, verb: str, wait_seconds: float = WAIT_SECONDS) -> Iterator[None]:
    """Hold the host for one verb. Raises HostError `busy`, naming who has it for too long.

    This is no deployment lock: it orders single verbs, the dead-man's restore among them.
    """
    make_folder(paths.home)
    descriptor = os.open(paths.busy, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _take(descriptor, time.monotonic() + wait_seconds)
        with suppress(OSError):  # a full disk: the name is a courtesy, the lock is not
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{verb}, pid {os.getpid()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace")
                raise HostError(
                    "busy", f"the host is busy: {holder}", "run it again once that has ended"
                ) from error
        time.sleep(PAUSE_SECONDS)

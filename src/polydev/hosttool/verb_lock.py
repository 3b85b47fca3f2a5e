"""The verb lock: one verb at a time changes the host, its backups, images or releases.

Other verbs wait. Each slot has a lock of its own: systemd changes slots on behalf of a verb that
holds the host's lock.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from polydev.durable_files import make_folder
from polydev.hosttool.errors import HostError
from polydev.hosttool.paths import Paths

WAIT_SECONDS = 300.0
PAUSE_SECONDS = 0.1


def lock_host(
    paths: Paths, verb: str, wait_seconds: float = WAIT_SECONDS
) -> AbstractContextManager[None]:
    """Hold the host's lock for one verb. Raises HostError `busy`, which names the holder.

    This is not the deployment lock: it orders single verbs, such as the dead-man timer's restore.
    """
    return _locked(paths.busy, "the host", verb, wait_seconds)


def lock_slot(
    paths: Paths, number: int, verb: str, wait_seconds: float = WAIT_SECONDS
) -> AbstractContextManager[None]:
    """Hold one slot's lock for one verb. Raises HostError `busy`."""
    return _locked(paths.slot_queue(number), f"slot {number}", verb, wait_seconds)


@contextmanager
def _locked(queue: Path, what: str, verb: str, wait_seconds: float) -> Iterator[None]:
    make_folder(queue.parent)
    descriptor = os.open(queue, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _take(descriptor, what, time.monotonic() + wait_seconds)
        with suppress(OSError):  # a full disk: the lock works without the name
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{verb}, pid {os.getpid()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, what: str, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace")
                raise HostError(
                    "busy", f"{what} is busy: {holder}", "run it again when that has ended"
                ) from error
        time.sleep(PAUSE_SECONDS)

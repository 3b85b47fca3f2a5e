"""`lock hold`: the lock lives as long as the operator's side of a pipe says so."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from enum import Enum

from polydev.hosttool.errors import HostError
from polydev.hosttool.lock import Lock
from polydev.hosttool.paths import Paths

RELEASE = b"release"
CHUNK_BYTES = 4096


class End(Enum):
    RELEASED = "released"
    GONE = "gone"
    EXPIRED = "expired"


def hold(
    paths: Paths, seconds: int, document: dict[str, str], *, again: bool
) -> dict[str, object] | None:
    """Take the lock, say so in one line, keep it; None when it was let go as it should be.

    The line `release` on stdin ends it, and so do the end of stdin, a signal, or `seconds`
    without a line, these three leaving lock.json for the next one to find. Raises HostError
    `lock-held`, `lock-expired`.
    """
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE):
        # Whoever started us may have them ignored; the end of the process lets go of the flock.
        signal.signal(number, signal.SIG_DFL)
    lock = Lock(paths, seconds, dict(document), again=again)
    sys.stdout.write(json.dumps({"lock": lock.document, "stale": lock.stale}) + "\n")
    sys.stdout.flush()
    end = _listen(lock, sys.stdin.fileno(), seconds)
    lock.let_go(is_done=end is End.RELEASED)
    if end is End.EXPIRED:
        raise HostError("lock-expired", f"nobody renewed the lock for {seconds} s", "take it again")
    return None


def _listen(lock: Lock, descriptor: int, seconds: int) -> End:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    expires = time.monotonic() + seconds
    unfinished = b""
    while (left := expires - time.monotonic()) > 0:
        if not poller.poll(left * 1000):
            continue
        chunk = os.read(descriptor, CHUNK_BYTES)
        if not chunk:
            return End.GONE
        *lines, unfinished = (unfinished + chunk).split(b"\n")
        if RELEASE in (line.strip() for line in lines):
            return End.RELEASED
        if lines:
            lock.renew()
            expires = time.monotonic() + seconds
    return End.EXPIRED

"""Verbs of the deployment lock. `lock hold` keeps it until the operator's side lets go."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from enum import Enum

from polydev.hosttool import deployment_lock
from polydev.hosttool.deployment_lock import HeldLock
from polydev.hosttool.errors import HostError
from polydev.hosttool.paths import Paths
from polydev.hosttool.verb import ID, Call, HostVerb, argument, required

RELEASE = b"release"
CHUNK_BYTES = 4096


class _End(Enum):
    RELEASED = "released"
    GONE = "gone"
    EXPIRED = "expired"


def hold_lock(
    paths: Paths, seconds: int, document: dict[str, str], *, again: bool
) -> dict[str, object] | None:
    """Take the lock, print one line about it, and hold it until it is released.

    The line `release` on stdin releases it. The end of stdin, a signal, or `seconds` without a
    line end it, too, but leave lock.json for the next holder to find. Raises HostError `lock-held`,
    `lock-expired`.
    """
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE):
        # The parent may ignore them; the end of the process releases the flock.
        signal.signal(number, signal.SIG_DFL)
    lock = HeldLock(paths, seconds, dict(document), again=again)
    sys.stdout.write(json.dumps({"lock": lock.document, "stale": lock.stale}) + "\n")
    sys.stdout.flush()
    end = _listen(lock, sys.stdin.fileno(), seconds)
    lock.let_go(is_done=end is _End.RELEASED)
    if end is _End.EXPIRED:
        raise HostError(
            "lock-expired",
            f"the deployment lock expired: nobody renewed it for {seconds} s",
            "run the command again",
        )
    return None


def _listen(lock: HeldLock, descriptor: int, seconds: int) -> _End:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    expires = time.monotonic() + seconds
    unfinished = b""
    while (left := expires - time.monotonic()) > 0:
        if not poller.poll(left * 1000):
            continue
        chunk = os.read(descriptor, CHUNK_BYTES)
        if not chunk:
            return _End.GONE
        *lines, unfinished = (unfinished + chunk).split(b"\n")
        if RELEASE in (line.strip() for line in lines):
            return _End.RELEASED
        if lines:
            lock.renew()
            expires = time.monotonic() + seconds
    return _End.EXPIRED


def lock_hold(call: Call) -> object:
    arguments = call.arguments
    document = {"id": arguments.id, "owner": arguments.owner, "purpose": arguments.purpose}
    return hold_lock(call.paths, arguments.seconds, document, again=arguments.again)


def lock_show(call: Call) -> object:
    return deployment_lock.show(call.paths)


def lock_break(call: Call) -> object:
    return deployment_lock.break_lock(call.paths)


VERBS = (
    HostVerb(
        "lock hold",
        "Hold the deployment lock until `release` or the end of stdin",
        lock_hold,
        (
            ID,
            required("--owner", help="who deploys"),
            required("--purpose", help="what for"),
            required(
                "--seconds", type=int, help="release it after this time without a line on stdin"
            ),
            argument(
                "--again",
                action="store_true",
                help="take over from a holder of the same deployment that lost its connection",
            ),
        ),
    ),
    HostVerb("lock show", "Show who holds the lock, and whether that process is alive", lock_show),
    HostVerb("lock break", "End the lock's holder and remove the lock", lock_break),
)

"""The deployment lock: `lock.json` names the owner, a `flock` on `lock.held` proves it is alive.

A holder that dies leaves lock.json. The next one finds it without the flock, takes the lock, and
reports whose work broke off.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from polydev.durable_files import make_folder, read_json, remove, write_json
from polydev.hosttool.errors import HostError
from polydev.hosttool.paths import Paths, require_id

TRIES = 100
PAUSE_SECONDS = 0.02
# On a busy host a process may stand still for so long.
END_SECONDS = 20.0


class HeldLock:
    """A lock that this process holds until it ends or calls `let_go`."""

    def __init__(
        self, paths: Paths, seconds: int, document: dict[str, Any], *, again: bool = False
    ) -> None:
        """Take the lock. Raises HostError `lock-held`, which names the holder.

        `again` first ends a holder of the same deployment whose connection was lost without this
        host having noticed.
        """
        require_id(str(document["id"]))
        make_folder(paths.home)
        self._paths = paths
        self._seconds = seconds
        former = read_lock(paths)
        if again and former and former.get("id") == document["id"] and is_held(paths):
            _end(former)
        self._descriptor = _flocked(paths)
        self.stale = read_lock(paths)
        now = datetime.now(timezone.utc)
        self.document = document | {
            "since": now.isoformat(),
            "pid": os.getpid(),
            "pidStart": started_ticks(os.getpid()),
        }
        self.renew()

    def renew(self) -> None:
        expires = datetime.now(timezone.utc) + timedelta(seconds=self._seconds)
        self.document["expires"] = expires.isoformat()
        write_json(self._paths.lock, self.document)

    def let_go(self, *, is_done: bool) -> None:
        """Release the lock; `is_done` removes lock.json, so that nothing counts as broken off."""
        if is_done:
            remove(self._paths.lock)
        os.close(self._descriptor)


def show(paths: Paths) -> dict[str, object]:
    """Return the lock, and whether its holder is alive; the lock of a dead one is stale."""
    lock = read_lock(paths)
    return {"lock": lock, "held": lock is not None and is_held(paths)}


def break_lock(paths: Paths) -> dict[str, object]:
    """End the holder, remove the lock, return the lock. Raises HostError `lock-held`."""
    make_folder(paths.home)
    lock, was_held = read_lock(paths), is_held(paths)
    if was_held and lock:
        _end(lock)
    descriptor = _flocked(paths)
    try:
        lock = read_lock(paths) or lock
        remove(paths.lock)
    finally:
        os.close(descriptor)
    return {"broken": lock, "wasHeld": was_held}


def read_lock(paths: Paths) -> dict[str, Any] | None:
    """Read lock.json; a file that cannot be read counts as a lock with an unknown owner."""
    try:
        return read_json(paths.lock)
    except ValueError as error:
        return {"id": None, "owner": "unknown", "purpose": f"unreadable: {error}", "pid": 0}


def is_held(paths: Paths) -> bool:
    try:
        descriptor = os.open(paths.lock_held, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _flocked(paths: Paths) -> int:
    """Open and flock lock.held, which is never removed: a lock on a removed file locks nothing.

    A holder takes the flock before it writes lock.json, and `is_held` takes it for a moment. So
    this tries until it can name a living holder in its error.
    """
    descriptor = os.open(paths.lock_held, os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(TRIES):
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        lock = read_lock(paths)
        if lock and is_alive(lock):
            break
        time.sleep(PAUSE_SECONDS)
    os.close(descriptor)
    lock = read_lock(paths) or {}
    raise HostError(
        "lock-held",
        f"{lock.get('owner', 'someone')} holds the deployment lock since {lock.get('since')}, "
        f"until {lock.get('expires')} at the latest: {lock.get('purpose')} ({lock.get('id')})",
        "wait for it with --wait SECONDS, which deploy, rollback, backup and database.move take, "
        "or end it: `./inv unlock`",
    )


def is_alive(lock: dict[str, Any]) -> bool:
    """Whether the process that wrote a lock still runs; its PID alone may have been reused."""
    return bool(lock.get("pid")) and started_ticks(lock["pid"]) == lock.get("pidStart")


def started_ticks(pid: int) -> int | None:
    """Return a process's start in ticks since the boot; None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])


def _end(lock: dict[str, Any]) -> None:
    try:
        process = os.pidfd_open(lock["pid"])
    except OSError:
        return
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not is_alive(lock):
                return
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, number)
                signal.pidfd_send_signal(process, signal.SIGCONT)  # a stopped one would not end
            if _ended(process, END_SECONDS):
                return
    finally:
        os.close(process)


def _ended(process: int, timeout_seconds: float) -> bool:
    import select

    poller = select.poll()
    poller.register(process, select.POLLIN)
    return bool(poller.poll(timeout_seconds * 1000))

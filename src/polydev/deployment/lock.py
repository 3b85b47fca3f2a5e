"""The deployment lock of a host: taken, waited for, renewed, released."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, TypeVar

from polydev.clock_difference import offset_seconds
from polydev.deployment.connection import ANSWER_SECONDS, TOOL, Unreachable, tool_error
from polydev.errors import LockHeld
from polydev.processes import LineProcess
from polydev.ssh import SshTarget

LOCK_SECONDS = 120
RENEW_SECONDS = 30.0
PAUSE_SECONDS = 2.0
T = TypeVar("T")


class HostLock:
    """The lock of a host, held by a connection of its own, so that it ends with this process.

    `stale` is the lock of a process that died, or None; `clock_offset_seconds` is how far the
    host's clock is ahead of this machine's.
    """

    def __init__(
        self,
        target: SshTarget,
        deployment_id: str,
        owner: str,
        purpose: str,
        *,
        again: bool = False,
    ) -> None:
        """Acquire the lock, `again` after its connection was lost.

        Raises LockHeld naming its holder, or Unreachable.
        """
        words = ["lock", "hold", "--id", deployment_id, "--owner", owner]
        words += ["--purpose", purpose, "--seconds", str(LOCK_SECONDS)]
        words += ["--again"] if again else []
        argv = target.argv(TOOL, *words)
        before = time.time()
        self._process = LineProcess(argv)
        try:
            answer = _first_line(self._process, target.name)
        except BaseException:
            self._process.end()
            raise
        self.stale: Mapping[str, Any] | None = answer.get("stale")
        given = datetime.fromisoformat(answer["lock"]["since"]).timestamp()
        self.clock_offset_seconds = offset_seconds(before, time.time(), given, given)
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, daemon=True)
        self._renewing.start()

    @property
    def is_held(self) -> bool:
        return self._process.is_running

    def release(self) -> None:
        self._ended.set()
        self._renewing.join()
        self._process.send("release")
        self._process.end(ANSWER_SECONDS)

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            self._process.send("renew")


def _first_line(process: LineProcess, host: str) -> dict[str, Any]:
    line = process.first_line(ANSWER_SECONDS)
    try:
        answer = json.loads(line)
    except ValueError:
        process.end_group()
        raise Unreachable(f"cannot lock {host}: {process.last_words() or 'no answer'}") from None
    if "lock" not in answer:
        raise tool_error(host, "lock", line.decode(), "")
    return dict(answer)


def wait_for_lock(take: Callable[[], T], seconds: float, say: Callable[[str], None]) -> T:
    """Acquire a lock; wait for so long if it is held, and say once who holds it.

    Raises LockHeld if it is still held then.
    """
    deadline = time.monotonic() + seconds
    try:
        return take()
    except LockHeld as held:
        if seconds <= 0:
            raise
        say(f"waiting up to {seconds:g} s: {held.message}")
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(PAUSE_SECONDS, left))
        with suppress(LockHeld):
            return take()
    return take()

"""One timer for all viewers: the process wakes once for their pings, and not once for each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PING_SECONDS = 20.0


class KeepaliveTimer:
    """Calls everyone every `seconds`, for whom the first time comes within these."""

    def __init__(self, seconds: float = PING_SECONDS) -> None:
        self._seconds = seconds
        self._called: set[Callable[[], None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, call: Callable[[], None]) -> None:
        self._called.add(call)
        if self._timer is None:
            self._wait()

    def remove(self, call: Callable[[], None]) -> None:
        """Again, or without having joined, is nothing."""
        self._called.discard(call)
        if self._timer is not None and not self._called:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._tick)

    def _tick(self) -> None:
        self._wait()
        for call in list(self._called):  # who is called may leave
            call()

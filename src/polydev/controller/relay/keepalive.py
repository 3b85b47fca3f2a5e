"""One timer for the pings of all viewers: the process wakes once for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PING_SECONDS = 20.0


class KeepaliveTimer:
    """Calls all added functions every `seconds`; a new one is called for the first time sooner."""

    def __init__(self, seconds: float = PING_SECONDS) -> None:
        self._seconds = seconds
        self._called: set[Callable[[], None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, call: Callable[[], None]) -> None:
        self._called.add(call)
        if self._timer is None:
            self._wait()

    def remove(self, call: Callable[[], None]) -> None:
        """Do nothing if the function was never added, or is removed already."""
        self._called.discard(call)
        if self._timer is not None and not self._called:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._tick)

    def _tick(self) -> None:
        self._wait()
        for call in list(self._called):  # a call may remove itself
            call()

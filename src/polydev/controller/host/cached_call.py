"""A call whose result is shared by all callers within a few seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class CachedCall(Generic[T]):
    """Calls `read` at most once in `seconds`; other callers get that result.

    An exception goes to all callers that wait for it, and is not kept.
    """

    def __init__(
        self,
        read: Callable[[], Awaitable[T]],
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._seconds = seconds
        self._clock = clock
        self._kept: tuple[float, T] | None = None
        self._under_way: asyncio.Task[T] | None = None

    async def __call__(self) -> T:
        if self._kept is not None and self._clock() - self._kept[0] < self._seconds:
            return self._kept[1]
        if self._under_way is None:
            self._under_way = asyncio.create_task(self._make())
            self._under_way.add_done_callback(self._done)
        return await asyncio.shield(self._under_way)

    async def _make(self) -> T:
        made = await self._read()
        self._kept = (self._clock(), made)
        return made

    def _done(self, task: asyncio.Task[T]) -> None:
        self._under_way = None
        if not task.cancelled():
            task.exception()  # marked as retrieved, also if nobody waits any more

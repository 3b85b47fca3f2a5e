"""Tells those who follow sessions that there is news, with one question to the database for all.

The news may be written by another process: while a release hands over, two serve.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from polydev.controller.watching import Watch

EVERY_SECONDS = 0.25


class NewsBell:
    """Rings whenever the number of the latest news changes; asks only while somebody listens."""

    def __init__(
        self, latest: Callable[[], Awaitable[int]], every_seconds: float = EVERY_SECONDS
    ) -> None:
        self._latest = latest
        self._next = asyncio.Event()
        self._known: int | None = None
        self._watch = Watch("news", self._look, partial(asyncio.sleep, every_seconds))

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        if not self._watch.is_needed:
            self._known = None  # rings at once: there may be news since the listener read
        with self._watch.needed():
            yield

    def next_ring(self) -> asyncio.Event:
        """Set by the next ring. Taken before the news are read, none can be missed."""
        return self._next

    def ring(self) -> None:
        rung, self._next = self._next, asyncio.Event()
        rung.set()

    async def _look(self) -> None:
        latest = await self._latest()
        if latest != self._known:
            self.ring()
        self._known = latest

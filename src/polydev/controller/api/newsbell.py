"""Tells those who follow sessions that there is news, with one question to the database for all.

The news may be written by another process: while a release hands over, two serve.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog

from polydev.controller.problems import DATABASE_ERRORS

log = structlog.stdlib.get_logger(__name__)

EVERY_SECONDS = 0.25


class NewsBell:
    """Rings whenever the number of the latest news changes; asks only while somebody listens."""

    def __init__(
        self, latest: Callable[[], Awaitable[int]], every_seconds: float = EVERY_SECONDS
    ) -> None:
        self._latest = latest
        self._every_seconds = every_seconds
        self._next = asyncio.Event()
        self._listeners = 0
        self._task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        self._listeners += 1
        if self._task is None:
            self._task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            self._listeners -= 1
            if not self._listeners:
                self._task.cancel()
                self._task = None

    def next_ring(self) -> asyncio.Event:
        """Set by the next ring. Taken before the news are read, none can be missed."""
        return self._next

    def ring(self) -> None:
        rung, self._next = self._next, asyncio.Event()
        rung.set()

    async def _watch(self) -> None:
        known = -1  # rings at once: there may be news since the listener read
        while True:
            try:
                # A question that is cancelled costs its connection, and cancelled twice, as at the
                # end of the process, aiosqlite waits for ever.
                latest = await asyncio.shield(self._latest())
            except DATABASE_ERRORS as error:
                log.warning("news not read", error=type(error).__name__)
            else:
                if latest != known:
                    self.ring()
                known = latest
            await asyncio.sleep(self._every_seconds)

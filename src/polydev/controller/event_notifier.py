"""Wake those who follow sessions when a session has a new event.

All of them share one query. It finds events of other processes too: two processes serve while a
deployment hands over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from polydev.controller.poll_while_needed import SharedPoller

EVERY_SECONDS = 0.25


class EventNotifier:
    """Notify subscribers when the number of the latest event changes.

    The database is asked only while there is a subscriber.
    """

    def __init__(
        self, latest_number: Callable[[], Awaitable[int]], every_seconds: float = EVERY_SECONDS
    ) -> None:
        self._latest_number = latest_number
        self._changed = asyncio.Event()
        self._known_number: int | None = None
        self._poller = SharedPoller("news", self._poll, partial(asyncio.sleep, every_seconds))

    @asynccontextmanager
    async def subscribed(self) -> AsyncIterator[None]:
        if not self._poller.is_in_use:
            # Notify at once: there may be events since the subscriber read.
            self._known_number = None
        with self._poller.in_use():
            yield

    def next_change(self) -> asyncio.Event:
        """Return what the next change sets. Take it before you read events: none is missed."""
        return self._changed

    def notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _poll(self) -> None:
        latest_number = await self._latest_number()
        if latest_number != self._known_number:
            self.notify()
        self._known_number = latest_number

"""Looks that are repeated for all who need them, and only while somebody does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import Context

import structlog

from polydev.controller.problems import DATABASE_ERRORS

log = structlog.stdlib.get_logger(__name__)


class Watch:
    """Calls `look` and `pause` in turn while at least one block needs it.

    A look that fails is logged, once for each kind of trouble, and repeated after the pause.
    """

    def __init__(
        self,
        name: str,
        look: Callable[[], Awaitable[None]],
        pause: Callable[[], Awaitable[object]],
    ) -> None:
        self._name = name
        self._look = look
        self._pause = pause
        self._needed = 0
        self._task: asyncio.Task[None] | None = None
        self._trouble: str | None = None

    @property
    def is_needed(self) -> bool:
        return self._needed > 0

    @contextmanager
    def needed(self) -> Iterator[None]:
        """Look at once and again and again until the end of the block."""
        self._needed += 1
        if self._task is None:
            # In a context of its own: it outlives the request, whose id is not to be in its logs.
            self._task = Context().run(asyncio.create_task, self._go_on())
        try:
            yield
        finally:
            self._needed -= 1
            if not self._needed:
                self._task.cancel()
                self._task = None

    async def _go_on(self) -> None:
        while True:
            try:
                await asyncio.shield(self._look())  # one that has begun is finished
                self._trouble = None
            except Exception as error:
                self._tell(error)
            await self._pause()

    def _tell(self, error: Exception) -> None:
        trouble = type(error).__name__
        if trouble == self._trouble:
            return
        self._trouble = trouble
        if isinstance(error, DATABASE_ERRORS):  # its own words would quote the statement
            log.warning("watch_failed", watch=self._name, error=trouble)
        else:
            log.error("watch_failed", watch=self._name, exc_info=error)

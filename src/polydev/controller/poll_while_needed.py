"""Poll on behalf of everybody who needs the result, and only while somebody does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import Context

import structlog

from polydev.controller.problem_details import DATABASE_ERRORS

log = structlog.stdlib.get_logger(__name__)


class SharedPoller:
    """Call `poll` and `pause` in turn while at least one `in_use` block is open.

    The first block starts the task, the end of the last one cancels it. A poll that has begun is
    finished all the same: a query is never cut off in the middle. A poll that fails is logged, once
    for each kind of error in a row, and repeated after the pause.
    """

    def __init__(
        self,
        name: str,
        poll: Callable[[], Awaitable[None]],
        pause: Callable[[], Awaitable[object]],
    ) -> None:
        self._name = name
        self._poll = poll
        self._pause = pause
        self._users = 0
        self._task: asyncio.Task[None] | None = None
        self._last_error = ""

    @property
    def is_in_use(self) -> bool:
        return self._users > 0

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the poller running until the end of the block; the first user starts it at once."""
        self._users += 1
        if self._task is None:
            # In a context of its own: the task outlives the request that starts it, so its log
            # lines must not carry that request's id.
            self._task = Context().run(asyncio.create_task, self._run())
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._task.cancel()
                self._task = None

    async def _run(self) -> None:
        while True:
            try:
                await asyncio.shield(self._poll())
                self._last_error = ""
            except Exception as error:
                if type(error).__name__ != self._last_error:
                    log_failure("poll_failed", error, poller=self._name)
                self._last_error = type(error).__name__
            await self._pause()


def log_failure(event: str, error: Exception, **fields: str) -> None:
    """Log an error; of the database's only the type, since its message quotes the statement."""
    if isinstance(error, DATABASE_ERRORS):
        log.warning(event, error=type(error).__name__, **fields)
    else:
        log.error(event, exc_info=error, **fields)

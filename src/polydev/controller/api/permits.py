"""Streams and viewers outlast the request that let them in, but not the token that it had.

When a token ends by itself is known from the beginning. That somebody revoked one is asked now
and then, with one question for all that lasts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from datetime import datetime

import structlog

from polydev.controller.model import Caller, now
from polydev.controller.problems import DATABASE_ERRORS
from polydev.controller.store.users import Tokens

log = structlog.stdlib.get_logger(__name__)

LOOK_SECONDS = 10.0
EXPIRED = "the token has expired"
REVOKED = "the token was revoked"

Over = asyncio.Future[str]


class Permits:
    def __init__(
        self,
        tokens: Tokens,
        look_seconds: float = LOOK_SECONDS,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._tokens = tokens
        self._look_seconds = look_seconds
        self._clock = clock
        self._revocable: dict[Over, str] = {}
        self._watching: asyncio.Task[None] | None = None

    @contextmanager
    def lasting(self, caller: Caller) -> Iterator[Over]:
        """Done, with the reason, once the caller's token is over; cancelled at the end."""
        loop = asyncio.get_running_loop()
        over: Over = loop.create_future()
        timer = None
        if caller.expires_at is not None:
            left = (caller.expires_at - self._clock()).total_seconds()
            timer = loop.call_later(max(left, 0), _end, over, EXPIRED)
        if caller.token_id is not None:
            self._watch(over, caller.token_id)
        try:
            yield over
        finally:
            if timer is not None:
                timer.cancel()
            self._forget(over)
            over.cancel()

    def _watch(self, over: Over, token_id: str) -> None:
        self._revocable[over] = token_id
        if self._watching is None:
            # In a context of its own: it outlives the request, whose id is not to be in its logs.
            self._watching = Context().run(asyncio.create_task, self._look_again_and_again())

    def _forget(self, over: Over) -> None:
        self._revocable.pop(over, None)
        if self._watching is not None and not self._revocable:
            self._watching.cancel()
            self._watching = None

    async def _look_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(self._look_seconds)
            try:
                await asyncio.shield(self._look())  # never cancelled: see NewsBell
            except DATABASE_ERRORS as error:
                log.warning("tokens_not_watched", error=type(error).__name__)
            except Exception:
                log.exception("tokens_not_watched")

    async def _look(self) -> None:
        asked = dict(self._revocable)
        valid = await self._tokens.not_revoked(set(asked.values()))
        for over, token_id in asked.items():
            if token_id not in valid:
                _end(over, REVOKED)


def _end(over: Over, reason: str) -> None:
    if not over.done():
        over.set_result(reason)

"""Ask the agent of one VM in the background: its answer may take long, or never come."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from polydev.errors import AgentError
from polydev.vm.cancel_on_timeout import end

Reply = TypeVar("Reply")


class AgentPoller(Generic[Reply]):
    """Asks one question again and again, with one request at a time.

    latest      the last answer, or the error instead of it; None before the first
    """

    def __init__(self, question: Callable[[], Awaitable[Reply]]) -> None:
        self._question = question
        self._asking: asyncio.Task[Reply | AgentError] | None = None
        self._began = 0.0
        self._ended = 0.0
        self.latest: Reply | AgentError | None = None

    def ask(self, pause: float, share: float = 0.0) -> None:
        """Ask, unless a request is under way or the last one ended less than `pause` seconds ago.

        The pause is at least `share` times as long as the last answer took.
        """
        wait = max(pause, share * (self._ended - self._began))
        now = asyncio.get_running_loop().time()
        if self._asking is not None or (self.latest is not None and now - self._ended < wait):
            return
        self._began = now
        self._asking = asyncio.create_task(self._ask())

    def answer(self) -> Reply | AgentError | None:
        """Return an answer that came since the last call of this; None if there is none."""
        if self._asking is None or not self._asking.done():
            return None
        done, self._asking = self._asking, None
        self.latest = done.result()
        return self.latest

    async def _ask(self) -> Reply | AgentError:
        try:
            return await self._question()
        except AgentError as error:
            return error
        finally:
            self._ended = asyncio.get_running_loop().time()

    async def close(self) -> None:
        if self._asking is not None:
            await end(self._asking)

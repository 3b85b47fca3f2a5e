"""One VM's agent, asked something beside everything else: it may take long to say nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from polydev.errors import AgentError
from polydev.vm.timeouts import end

Told = TypeVar("Told")


class AgentPoller(Generic[Told]):
    """Asks, at most once at a time.

    latest      the last answer or what there was instead; None before the first
    """

    def __init__(self, question: Callable[[], Awaitable[Told]]) -> None:
        self._question = question
        self._asking: asyncio.Task[Told | AgentError] | None = None
        self._began = 0.0
        self._ended = 0.0
        self.latest: Told | AgentError | None = None

    def ask(self, pause: float, share: float = 0.0) -> None:
        """Ask, unless a question is under way or the last one's end is not `pause` ago.

        The pause is at least `share` times what the last answer took.
        """
        wait = max(pause, share * (self._ended - self._began))
        now = asyncio.get_running_loop().time()
        if self._asking is not None or (self.latest is not None and now - self._ended < wait):
            return
        self._began = now
        self._asking = asyncio.create_task(self._ask())

    def answer(self) -> Told | AgentError | None:
        """An answer that has come since this was called the last time."""
        if self._asking is None or not self._asking.done():
            return None
        done, self._asking = self._asking, None
        self.latest = done.result()
        return self.latest

    async def _ask(self) -> Told | AgentError:
        try:
            return await self._question()
        except AgentError as error:
            return error
        finally:
            self._ended = asyncio.get_running_loop().time()

    async def close(self) -> None:
        if self._asking is not None:
            await end(self._asking)

"""Work that the controller does in the background while it serves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog

log = structlog.stdlib.get_logger(__name__)

RESTART_SECONDS = 5.0

Work = Callable[[], Awaitable[None]]


class Background:
    """Runs work in the background. Work that fails is logged and restarted."""

    def __init__(self, works: Mapping[str, Work]) -> None:
        self._works = works
        self._tasks: list[asyncio.Task[None]] = []
        self._ends = False

    def begin(self) -> None:
        self._tasks = [
            asyncio.create_task(_until_done(name, work), name=name)
            for name, work in self._works.items()
        ]

    async def end(self) -> None:
        """Cancel all work and wait for its end."""
        if not self._ends:
            self._ends = True
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _until_done(name: str, work: Work) -> None:
    while True:
        try:
            await work()
            return
        except Exception:
            log.exception("background_work_failed", work=name, restart_seconds=RESTART_SECONDS)
        await asyncio.sleep(RESTART_SECONDS)

"""Time limits for work that others do, kept whatever that work does."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from polydev.errors import VmError

T = TypeVar("T")
# For work to notice that it is cancelled.
ENDING_SECONDS = 5.0


async def within(seconds: float, work: Coroutine[Any, Any, T], what: str) -> T:
    """What `work` gives, unless it takes longer: then it is cancelled, and VmError raised.

    asyncio.wait_for would wait on for work that does not end when it is cancelled, and before
    Python 3.12 may lose the cancellation of its caller.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if task.done():
            return task.result()
        raise VmError(f"{what} did not end within {seconds:g} s")
    finally:
        await end(task)


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and give them a moment to end."""
    pending = {task for task in tasks if not task.done()}
    for task in pending:
        task.cancel()
    if pending:
        await asyncio.wait(pending, timeout=ENDING_SECONDS)
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()  # seen, else asyncio would say that nobody looked

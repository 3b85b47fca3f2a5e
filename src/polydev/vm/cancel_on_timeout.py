"""Time limits for asynchronous work, kept even if the work ignores its cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from polydev.errors import VmError

T = TypeVar("T")
# How long cancelled work may take to end.
ENDING_SECONDS = 5.0


async def limited(seconds: float, work: Awaitable[T], late: Exception | None = None) -> T:
    """Return the result of `work`. If it takes longer, cancel it and raise asyncio.TimeoutError.

    asyncio.wait_for would wait for work that ignores its cancellation. Before Python 3.12 it also
    loses the cancellation of its caller if the work is done at that moment: a loop that was to end
    then goes on for ever.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if task.done():
            return task.result()
        raise late or asyncio.TimeoutError
    finally:
        await end(task)


async def within(seconds: float, work: Awaitable[T], what: str) -> T:
    """Return the result of `work`. If it takes longer, cancel it and raise VmError."""
    return await limited(seconds, work, VmError(f"{what} did not end within {seconds:g} s"))


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait a moment for their end."""
    pending = {task for task in tasks if not task.done()}
    for task in pending:
        task.cancel()
    if pending:
        await asyncio.wait(pending, timeout=ENDING_SECONDS)
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()  # retrieved, or asyncio would log that it never was

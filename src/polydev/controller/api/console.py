"""A VM's serial console: its last lines, and what comes after them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from polydev.controller.machines.console import added_since
from polydev.vm.files import opened

BLOCK_BYTES = 64 * 1024
MOST_TAIL_BYTES = 1024 * 1024
MOST_LINES = 10_000
FOLLOW_SECONDS = 0.5


def tail(file: Path, lines: int) -> tuple[bytes, int]:
    """The last lines, control sequences and all, and where in the file they end.

    Nothing where there is no file, and never more than MOST_TAIL_BYTES. Raises VmError for a file
    that must not be read.
    """
    try:
        with opened(file) as descriptor:
            end = start = os.fstat(descriptor).st_size
            found = b""
            while start and found.count(b"\n") <= lines and len(found) < MOST_TAIL_BYTES:
                size = min(BLOCK_BYTES, start)
                start -= size
                found = os.pread(descriptor, size, start) + found
    except FileNotFoundError:
        return b"", 0
    kept = found.splitlines(keepends=True)[-lines:] if lines else []
    return b"".join(kept)[-MOST_TAIL_BYTES:], end


async def follow(
    file: Path, lines: int, over: Callable[[], Awaitable[bool]], ending: asyncio.Event
) -> AsyncIterator[bytes]:
    """The last lines and then what is added, until `over` says that no more comes.

    Raises VmError for a file that must not be read.
    """
    text, offset = await asyncio.to_thread(tail, file, lines)
    if text:
        yield text
    while not ending.is_set():
        last = await over()
        added, offset = await asyncio.to_thread(added_since, file, offset, BLOCK_BYTES)
        if added:
            yield added
        elif last:
            return
        else:
            await _pause(ending)


async def _pause(ending: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(ending.wait(), FOLLOW_SECONDS)
    except asyncio.TimeoutError:
        return

"""A VM's serial console: its last lines, and what comes after them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

BLOCK_BYTES = 64 * 1024
MOST_TAIL_BYTES = 1024 * 1024
MOST_LINES = 10_000
FOLLOW_SECONDS = 0.5


def tail(file: Path, lines: int) -> tuple[bytes, int]:
    """The last lines, control sequences and all, and where in the file they end.

    Nothing where there is no file, and never more than MOST_TAIL_BYTES.
    """
    try:
        with file.open("rb") as opened:
            end = opened.seek(0, 2)
            start = end
            found = b""
            while start and found.count(b"\n") <= lines and len(found) < MOST_TAIL_BYTES:
                size = min(BLOCK_BYTES, start)
                start = opened.seek(start - size)
                found = opened.read(size) + found
    except FileNotFoundError:
        return b"", 0
    kept = found.splitlines(keepends=True)[-lines:] if lines else []
    return b"".join(kept)[-MOST_TAIL_BYTES:], end


def block_at(file: Path, offset: int) -> bytes:
    """What stands there, up to a block; nothing where there is no file (yet, or any more)."""
    try:
        with file.open("rb") as opened:
            opened.seek(offset)
            return opened.read(BLOCK_BYTES)
    except FileNotFoundError:
        return b""


async def follow(
    file: Path, lines: int, over: Callable[[], Awaitable[bool]], ending: asyncio.Event
) -> AsyncIterator[bytes]:
    """The last lines and then what is added, until `over` says that no more comes."""
    text, offset = await asyncio.to_thread(tail, file, lines)
    if text:
        yield text
    while not ending.is_set():
        last = await over()
        added = await asyncio.to_thread(block_at, file, offset)
        offset += len(added)
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

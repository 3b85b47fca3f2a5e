"""The console's file: its last lines, and what is added to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from polydev.controller.api import console
from polydev.controller.api.console import follow, tail
from polydev.controller.machines.console import added_since


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "serial.log"


def test_the_last_lines_as_they_are(file: Path) -> None:
    file.write_bytes(b"one\r\n\x1b[32mtwo\x1b[0m\r\nthr\xffee")
    assert tail(file, 2) == (b"\x1b[32mtwo\x1b[0m\r\nthr\xffee", file.stat().st_size)
    assert tail(file, 0) == (b"", file.stat().st_size)


def test_no_file_is_no_text(file: Path) -> None:
    assert tail(file, 10) == (b"", 0)
    assert added_since(file, 0) == (b"", 0)


def test_lines_across_blocks(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "BLOCK_BYTES", 7)
    lines = [b"line %d\n" % number for number in range(50)]
    file.write_bytes(b"".join(lines))
    for count in (1, 2, 49, 50, 60):
        assert tail(file, count)[0] == b"".join(lines[-count:])


def test_a_line_without_end_is_cut(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "MOST_TAIL_BYTES", 1000)
    file.write_bytes(b"x" * 200_000 + b"end")
    text, end = tail(file, 5)
    assert (len(text), text[-3:], end) == (1000, b"end", 200_003)


def test_follows_until_it_is_over_and_loses_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "FOLLOW_SECONDS", 0)
    monkeypatch.setattr(console, "BLOCK_BYTES", 4)

    async def scenario() -> bytes:
        writes = iter([b"", b"first\n", b"second\n", b"the last words\n"])

        async def over() -> bool:
            more = next(writes, None)
            if more:
                with file.open("ab") as opened:
                    opened.write(more)
            return more is None

        text = b""
        async for part in follow(file, 10, over, asyncio.Event()):
            text += part
        return text

    file.write_bytes(b"zero\n")
    assert asyncio.run(scenario()) == b"zero\nfirst\nsecond\nthe last words\n"


async def _next(parts: AsyncIterator[bytes]) -> bytes:
    return await parts.__anext__()


def test_ends_when_the_service_does(file: Path) -> None:
    async def never() -> bool:
        return False

    async def scenario() -> None:
        ending = asyncio.Event()
        followed = follow(file, 10, never, ending)
        waiting = asyncio.create_task(_next(followed))
        await asyncio.sleep(0)
        ending.set()
        with pytest.raises(StopAsyncIteration):
            await waiting

    asyncio.run(scenario())

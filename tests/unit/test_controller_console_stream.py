"""The console's file: its last lines, and lines that are added to it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
from sqlalchemy.exc import OperationalError

from polydev.controller.machines import console_stream as console
from polydev.controller.machines.console_stream import Consoles, Feed, tail
from polydev.controller.machines.vm_logs import added_since
from polydev.controller.store.vms import Vms
from polydev.errors import VmError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "serial.log"


def test_tail_returns_the_last_lines_unchanged(file: Path) -> None:
    file.write_bytes(b"one\r\n\x1b[32mtwo\x1b[0m\r\nthr\xffee")
    assert tail(file, 2) == (b"\x1b[32mtwo\x1b[0m\r\nthr\xffee", file.stat().st_size)
    assert tail(file, 0) == (b"", file.stat().st_size)


def test_missing_file_gives_no_text(file: Path) -> None:
    assert tail(file, 10) == (b"", 0)
    assert added_since(file, 0) == (b"", 0)


def test_tail_reads_lines_across_blocks(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "BLOCK_BYTES", 7)
    lines = [b"line %d\n" % number for number in range(50)]
    file.write_bytes(b"".join(lines))
    for count in (1, 2, 49, 50, 60):
        assert tail(file, count)[0] == b"".join(lines[-count:])


def test_tail_cuts_a_very_long_line(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "MOST_TAIL_BYTES", 1000)
    file.write_bytes(b"x" * 200_000 + b"end")
    text, end = tail(file, 5)
    assert (len(text), text[-3:], end) == (1000, b"end", 200_003)


class SomeVms:
    """VMs of which some are over. Each query first makes the guest write its next text; `half`
    is set once there were more than ten.
    """

    def __init__(self, file: Path, *writes: bytes) -> None:
        self.file = file
        self.writes = list(writes)
        self.asked: list[set[str]] = []
        self.failure: Exception | None = None
        self.half = asyncio.Event()

    async def over_of(self, ids: Collection[str]) -> set[str]:
        self.asked.append(set(ids))
        if len(self.asked) > 10:
            self.half.set()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if self.writes:
            with self.file.open("ab") as opened:
                opened.write(self.writes.pop(0))
        return set() if self.writes else set(ids)


def consoles_of(vms: SomeVms) -> Consoles:
    return Consoles(cast(Vms, vms), every_seconds=0)


async def all_of(consoles: Consoles, file: Path, lines: int = 10, vm_id: str = "vm") -> bytes:
    parts = consoles.follow(vm_id, file, lines, lambda: False)
    return b"".join([part async for part in parts])


@pytest.mark.parametrize("block_bytes", [4, 1 << 16])
def test_follow_returns_all_text_until_the_vm_is_over(
    file: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(console, "BLOCK_BYTES", block_bytes)
    file.write_bytes(b"zero\n")
    vms = SomeVms(file, b"", b"first\n", b"second\n", b"the last words\n")
    said = asyncio.run(all_of(consoles_of(vms), file))
    assert said == b"zero\nfirst\nsecond\nthe last words\n"


def test_all_followers_share_one_poll(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []

    def counted(path: Path, offset: int, most: int) -> tuple[bytes, int]:
        reads.append(path)
        return added_since(path, offset, most)

    class Followed(SomeVms):
        """VMs that write nothing before all of their followers are there."""

        has_all = asyncio.Event()

        async def over_of(self, ids: Collection[str]) -> set[str]:
            await self.has_all.wait()
            return await super().over_of(ids)

    class Counted(Consoles):
        @contextmanager
        def _feed(self, vm_id: str, file: Path, end: int) -> Iterator[Feed]:
            with super()._feed(vm_id, file, end) as feed:
                if sum(each.followers for each in self._feeds.values()) == 80:
                    vms.has_all.set()
                yield feed

    monkeypatch.setattr(console, "added_since", counted)
    vms = Followed(file, *[b"a line\n"] * 20)

    async def scenario() -> None:
        consoles = Counted(cast(Vms, vms), every_seconds=0)
        others = file.parent / "other"
        said = await asyncio.gather(
            *(all_of(consoles, file) for _ in range(40)),
            *(all_of(consoles, others, vm_id="other") for _ in range(40)),
        )
        assert set(said) == {b"a line\n" * 20, b""}

    asyncio.run(scenario())
    assert len(vms.asked) <= 21
    assert vms.asked[-1] == {"vm", "other"}
    assert len(reads) <= 2 * len(vms.asked)


def test_late_and_slow_followers_get_all_lines(file: Path) -> None:
    lines = [b"line %d\n" % number for number in range(30)]
    vms = SomeVms(file, *lines)

    async def scenario() -> None:
        consoles = consoles_of(vms)
        slow = consoles.follow("vm", file, 100, lambda: False)
        said = await anext(slow)
        quick = asyncio.create_task(all_of(consoles, file, 100))
        await asyncio.wait_for(vms.half.wait(), 60)
        late = asyncio.create_task(all_of(consoles, file, 100))
        assert await quick == await late == b"".join(lines)
        async for part in slow:
            said += part
        assert said == b"".join(lines)

    asyncio.run(scenario())


def test_one_who_reads_much_too_slowly_gets_the_end_only(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "MAX_BACKLOG_BYTES", 1000)
    monkeypatch.setattr(console, "LAST_BYTES", 100)
    lines = [b"%099d\n" % number for number in range(30)]
    vms = SomeVms(file, *lines)

    async def scenario() -> None:
        consoles = consoles_of(vms)
        slow = consoles.follow("vm", file, 100, lambda: False)
        await anext(slow)
        await all_of(consoles, file, 100)
        assert [part async for part in slow] == [lines[-1]]

    asyncio.run(scenario())


def test_truncated_file_is_read_from_its_beginning(file: Path) -> None:
    class Anew(SomeVms):
        async def over_of(self, ids: Collection[str]) -> set[str]:
            if len(self.writes) == 1:
                os.truncate(file, 0)
            return await super().over_of(ids)

    file.write_bytes(b"a long line of the first boot\n")
    vms = Anew(file, b"more\n", b"second boot\n")
    said = asyncio.run(all_of(consoles_of(vms), file))
    assert said == b"a long line of the first boot\nmore\nsecond boot\n"


@pytest.mark.parametrize("failure", [OperationalError("SELECT", {}, Exception()), ValueError("x")])
def test_failed_query_does_not_end_the_followers(file: Path, failure: Exception) -> None:
    vms = SomeVms(file, b"first\n", b"second\n")
    vms.failure = failure
    assert asyncio.run(all_of(consoles_of(vms), file)) == b"first\nsecond\n"


def put_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("/etc/passwd")


def test_replaced_file_ends_the_stream_with_a_reason(file: Path) -> None:
    class Replaced(SomeVms):
        async def over_of(self, ids: Collection[str]) -> set[str]:
            put_link(file)
            return set()

    file.write_bytes(b"one\n")

    async def scenario() -> None:
        consoles = consoles_of(Replaced(file))
        parts = consoles.follow("vm", file, 10, lambda: False)
        assert await anext(parts) == b"one\n"
        with pytest.raises(VmError, match="symbolic link"):
            await anext(parts)

    asyncio.run(scenario())


def test_followers_and_poller_end_on_request(file: Path) -> None:
    async def scenario() -> None:
        over = asyncio.Event()
        consoles = consoles_of(SomeVms(file, *[b""] * 1000))
        following = [
            asyncio.create_task(_rest(consoles.follow("vm", file, 10, over.is_set)))
            for _ in range(3)
        ]
        await asyncio.sleep(0.01)
        assert not any(each.done() for each in following)
        over.set()
        consoles.wake()
        assert await asyncio.gather(*following) == [b""] * 3
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others)

    asyncio.run(scenario())


async def _rest(parts: AsyncIterator[bytes]) -> bytes:
    return b"".join([part async for part in parts])

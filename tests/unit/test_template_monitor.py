"""Monitor commands that save and load a template, and the guest's command to set its clock."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from polydev.errors import VmError
from polydev.vm import template
from polydev.vm.cpu_wait_time import CpuSample, ThreadTimes
from polydev.vm.identity import Receipt, clock_line, identity_line, new_identity
from polydev.vm.template_client import copy_data

IGNORE_SHARED = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}


class Monitor:
    """A QMP client that records commands; migrations go through `statuses`.

    It sends the second half of `stream` only when it is told to end.
    """

    def __init__(self) -> None:
        self.told: list[object] = []
        self.statuses = ["active", "completed"]
        self.stream = b""
        self.writer: asyncio.StreamWriter | None = None

    async def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        self.told.append(command if arguments is None else (command, arguments))
        if command == "migrate":
            assert arguments is not None
            place = arguments["uri"].removeprefix("unix:")
            _, self.writer = await asyncio.open_unix_connection(place)
            self.writer.write(self.stream[: len(self.stream) // 2])
        if command == "query-migrate":
            return {"status": self.statuses.pop(0)}
        if command == "quit":
            assert self.writer is not None
            self.writer.write(self.stream[len(self.stream) // 2 :])
            self.writer.close()
        return {}

    @asynccontextmanager
    async def connected(self, where: object) -> AsyncIterator[Monitor]:
        self.told.append(where)
        try:
            yield self
        finally:
            if self.writer is not None:
                self.writer.close()


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch) -> Monitor:
    made = Monitor()
    monkeypatch.setattr(template, "monitor", made.connected)
    return made


WHERE = Path("/qmp")
POLLED = ["query-migrate", "query-migrate"]


@pytest.mark.parametrize(
    ("do", "told"),
    [
        (lambda: template.pause(WHERE), ["stop"]),
        (lambda: template.run_on(WHERE), ["cont"]),
        (
            lambda: template.load(WHERE, 7),
            [
                ("migrate-set-capabilities", IGNORE_SHARED),
                ("migrate-incoming", {"uri": "fd:7"}),
                *POLLED,
            ],
        ),
    ],
)
def test_monitor_commands_of_each_operation(do: Any, told: list[object], monitor: Monitor) -> None:
    asyncio.run(do())
    assert monitor.told == [WHERE, *told]


def test_vm_is_paused_saved_and_ended(monitor: Monitor, tmp_path: Path) -> None:
    monitor.stream = os.urandom(3 << 20)
    state = tmp_path / "state"
    asyncio.run(template.save(WHERE, state))
    stream = tmp_path / "state.sock"
    assert monitor.told == [
        WHERE,
        "stop",
        ("migrate-set-capabilities", IGNORE_SHARED),
        ("migrate", {"uri": f"unix:{stream}"}),
        *POLLED,
        "quit",
    ]
    assert state.read_bytes() == monitor.stream
    assert not stream.exists()


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_failed_migration_is_reported(status: str, monitor: Monitor, tmp_path: Path) -> None:
    monitor.statuses = ["active", status]
    work: list[Coroutine[Any, Any, None]] = [
        template.load(WHERE, 7),
        template.save(WHERE, tmp_path / "state"),
    ]
    for each in work:
        with pytest.raises(VmError, match="could not move the state of its devices"):
            asyncio.run(each)
        monitor.statuses = ["active", status]
    assert "quit" not in monitor.told
    assert not (tmp_path / "state.sock").exists()


class Guest:
    """A guest whose clock has these `errors`, one after each setting."""

    def __init__(self, *errors: float) -> None:
        self.errors = list(errors)
        self.asked = 0

    async def ask(self, line: bytes) -> bytes:
        self.asked += 1
        return line


@pytest.mark.parametrize(
    ("first", "then", "asked", "is_right"),
    [
        (0.0, [], 0, True),
        (template.CLOCK_ERROR_SECONDS / 2, [], 0, True),
        (9.0, [0.0], 1, True),
        (-9.0, [0.0], 1, True),
        (9.0, [9.0] * template.CLOCK_TRIES, template.CLOCK_TRIES, False),
        (9.0, [9.0] * (template.CLOCK_TRIES - 1) + [0.0], template.CLOCK_TRIES, True),
    ],
)
def test_a_clock_is_set_until_it_is_right(
    first: float,
    then: list[float],
    asked: int,
    is_right: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guest = Guest(*then)
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    monkeypatch.setattr(template, "guest_time_from", lambda _: 1000.0 + guest.errors.pop(0))
    if is_right:
        asyncio.run(template._set_clock(guest.ask, 1000.0 + first))
    else:
        with pytest.raises(VmError, match=r"off by 9\.000 s"):
            asyncio.run(template._set_clock(guest.ask, 1000.0 + first))
    assert guest.asked == asked


def test_answers_to_earlier_requests_are_skipped(tmp_path: Path) -> None:
    """A controller that ended has asked for another identity and for the time."""
    place = tmp_path / "identity"
    earlier, own = new_identity("earlier", None), new_identity("vm", "session")

    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(identity_line(earlier, 1.0) + clock_line(2.0))
        while line := await reader.readline():
            writer.write(line.rstrip() + b" random=00ff\n")
        writer.close()

    async def play() -> Receipt:
        async with await asyncio.start_unix_server(guest, place):
            return await template.give_identity(place, own, 100)

    receipt = asyncio.run(play())
    assert (receipt.vm_id, receipt.boot_id, receipt.random) == ("vm", own.boot_id, "00ff")


def samples(*shares: float) -> list[CpuSample]:
    """Return samples of a VM that used these shares of a CPU in consecutive spans."""
    ran, found = 0.0, [CpuSample(0.0, {1: ThreadTimes()}, 1)]
    for number, share in enumerate(shares, 1):
        ran += share
        found.append(CpuSample(float(number), {1: ThreadTimes(ran)}, 1))
    return found


class TestSettle:
    def spans(self, monkeypatch: pytest.MonkeyPatch, *shares: float) -> int:
        """Return the number of spans that `settle` waits for."""
        slept: list[float] = []
        left = samples(*shares)
        monkeypatch.setattr(time, "sleep", slept.append)
        template.settle(lambda: left.pop(0), lambda: True)
        assert set(slept) == {template.SETTLE_SPAN_SECONDS}
        return len(slept)

    def test_settle_ends_at_once_for_an_idle_vm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.spans(monkeypatch, 0.0) == 1

    def test_settle_waits_until_the_vm_is_idle(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.spans(monkeypatch, 1.0, 0.5, 0.1) == 3
        assert self.spans(monkeypatch, template.IDLE_SHARE, 0.1) == 2

    def test_settle_ends_after_its_time_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        most = round(template.SETTLE_SECONDS / template.SETTLE_SPAN_SECONDS)
        assert self.spans(monkeypatch, *[1.0] * most) == most

    def test_settle_fails_if_the_vm_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(time, "sleep", lambda _: None)
        left = samples(0.0)
        with pytest.raises(VmError, match="ended before it was saved"):
            template.settle(lambda: left.pop(0), lambda: False)


def test_copy_keeps_the_holes_of_its_source(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    with source.open("wb") as file:
        file.seek(1 << 20)
        file.write(b"data")
        file.seek(3 << 20)
        file.write(b"end")
        file.truncate(5 << 20)
    with source.open("rb") as file, copy.open("wb") as made:
        copy_data(file.fileno(), made.fileno())
    assert copy.read_bytes() == source.read_bytes()
    assert copy.stat().st_blocks <= source.stat().st_blocks

"""systemd over a private D-Bus: jobs and their ends, over connections that break."""

from __future__ import annotations

import asyncio
import io
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from dbus_fast import Message, Variant
from dbus_fast._private.unmarshaller import Unmarshaller

from polydev.controller.machines.systemd_bus import MANAGER, MANAGER_PATH, SystemdBus, UnitActivity
from polydev.errors import VmError

UNIT = "microvm@2.service"
JOB = "/org/freedesktop/systemd1/job/7"
HEADER_BYTES = 16


class FakeSystemd:
    """Bus and systemd in one. `plan` has the outcome of each job: its result, or `break`."""

    def __init__(self, plan: list[str]) -> None:
        self.plan = iter(plan)
        self.asked: list[str] = []
        self.properties: dict[str, Variant] = {}

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        while (line := await reader.readline()) != b"BEGIN\r\n":
            writer.write(b"OK 1234\r\n" if b"AUTH" in line else b"AGREE_UNIX_FD\r\n")
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while not writer.is_closing():
                await self._answer(await message_of(reader))
        writer.close()

    async def _answer(self, message: Message) -> None:
        self.asked.append(str(message.member))
        if message.member == "Hello":
            self._send(Message.new_method_return(message, "s", [":1.1"]))
        elif message.member == "Get":
            self._send(Message.new_method_return(message, "v", [self.properties[message.body[1]]]))
        elif message.member in ("StartUnit", "StopUnit"):
            result = next(self.plan)
            if result == "break":
                self._writer.close()
            elif result == "refuse":
                self._send(Message.new_error(message, "a.b.AccessDenied", "not you"))
            else:
                self._end("/another", "failed")
                self._send(Message.new_method_return(message, "o", [JOB]))
                if result == "break later":
                    await self._writer.drain()
                    self._writer.close()
                else:
                    self._end(JOB, result)
        else:
            self._send(Message.new_method_return(message))

    def _end(self, job: str, result: str) -> None:
        body = [7, job, UNIT, result]
        self._send(Message.new_signal(MANAGER_PATH, MANAGER, "JobRemoved", "uoss", body))

    def _send(self, message: Message) -> None:
        message.serial = message.serial or len(self.asked)
        self._writer.write(message._marshall(False))


async def message_of(reader: asyncio.StreamReader) -> Message:
    start = await reader.readexactly(HEADER_BYTES)
    body, fields = struct.unpack_from("<I", start, 4)[0], struct.unpack_from("<I", start, 12)[0]
    rest = await reader.readexactly((fields + 7) // 8 * 8 + body)
    stream: Any = io.BytesIO(start + rest)
    message = Unmarshaller(stream).unmarshall()
    assert message is not None
    return message


Use = Callable[[SystemdBus], Awaitable[object]]
Ask = Callable[[FakeSystemd, Use], object]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    place = tmp_path / "bus"

    def run(systemd: FakeSystemd, use: Use) -> object:
        async def scenario() -> object:
            server = await asyncio.start_unix_server(systemd, place)
            bus = SystemdBus(f"unix:path={place}")
            try:
                return await use(bus)
            finally:
                await bus.close()
                server.close()

        return asyncio.run(scenario())

    return run


@pytest.mark.parametrize(
    ("plan", "result"),
    [
        (["done"], "done"),
        (["failed"], "failed"),
        (["break", "done", "done"], "done"),
        (["break later", "done"], "done"),
    ],
)
def test_job_result_is_found_after_broken_connection(
    ask: Ask, plan: list[str], result: str
) -> None:
    systemd = FakeSystemd(plan)
    assert ask(systemd, lambda bus: bus.start(UNIT)) == result
    assert systemd.asked.count("StartUnit") == len(plan)
    assert systemd.asked.count("Subscribe") == 1 + sum("break" in each for each in plan)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (["refuse"], f"StopUnit {UNIT} was refused: not you"),
        (["break later", "break later"], f"StopUnit {UNIT}: the connection to systemd broke"),
        (["break", "break"], "systemd does not answer over D-Bus: the connection broke"),
    ],
)
def test_failed_job_is_reported_with_reason(ask: Ask, plan: list[str], words: str) -> None:
    with pytest.raises(VmError) as told:
        ask(FakeSystemd(plan), lambda bus: bus.stop(UNIT))
    assert told.value.message == words


def test_unit_state_while_running_and_after_end(ask: Ask) -> None:
    systemd = FakeSystemd([])
    systemd.properties = {
        "ActiveState": Variant("s", "active"),
        "MainPID": Variant("u", 42),
        "Result": Variant("s", "success"),
        "ExecMainCode": Variant("i", 0),
        "ExecMainStatus": Variant("i", 0),
    }
    assert ask(systemd, lambda bus: bus.state(UNIT)) == UnitActivity("active", 42)
    systemd.properties |= {
        "ActiveState": Variant("s", "failed"),
        "MainPID": Variant("u", 0),
        "Result": Variant("s", "signal"),
        "ExecMainCode": Variant("i", 2),
        "ExecMainStatus": Variant("i", 9),
    }
    assert ask(systemd, lambda bus: bus.state(UNIT)) == UnitActivity("failed", detail="signal 9")

"""Start, stop and inspect units of the host's systemd over D-Bus.

The connection is made with the first call, and again after it broke. Every call may be repeated, so
a call that a broken connection leaves in doubt is sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from dbus_fast import BusType, DBusFastError, Message, MessageType
from dbus_fast.aio import MessageBus

from polydev.errors import VmError

SYSTEMD = "org.freedesktop.systemd1"
MANAGER_PATH = "/org/freedesktop/systemd1"
MANAGER = f"{SYSTEMD}.Manager"
PROPERTIES = "org.freedesktop.DBus.Properties"
NO_SUCH_UNIT = f"{SYSTEMD}.NoSuchUnit"
JOB_ENDS = f"type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='JobRemoved'"
ATTEMPTS = 2
BUS_ERRORS = (OSError, EOFError, DBusFastError)
# waitid(2), of a process that ended by itself.
CLD_EXITED = 1


@dataclass(frozen=True)
class UnitActivity:
    """State of a unit: systemd's `ActiveState`, the pid if it runs, and how it ended if not."""

    active: str
    pid: int | None = None
    detail: str = ""


@dataclass(frozen=True)
class JobEnd:
    """The end of a job; `result` is systemd's: done, failed, dependency, timeout, canceled."""

    job: str
    unit: str
    result: str


class ConnectionLost(Exception):
    """The connection broke: it is unknown whether the call was carried out."""


class DBusRefusal(Exception):
    """An error reply of systemd or polkit; `name` is its D-Bus error name."""

    def __init__(self, name: str, words: str) -> None:
        super().__init__(words)
        self.name = name


class SystemdBus:
    """systemd's unit manager. Raises VmError if it refuses a call or does not answer."""

    def __init__(self, address: str | None = None) -> None:
        """`address` names another bus than the host's, for tests."""
        self._address = address
        self._bus: MessageBus | None = None
        self._connecting = asyncio.Lock()
        self._disconnect_task: asyncio.Task[None] | None = None
        self._waiting: set[asyncio.Queue[JobEnd | None]] = set()

    async def start(self, unit: str) -> str:
        """Start a unit; return the result of its job once that has ended."""
        return await self._job("StartUnit", unit)

    async def stop(self, unit: str) -> str:
        return await self._job("StopUnit", unit)

    async def reset_failed(self, unit: str) -> None:
        """Clear the failed state of a unit."""
        try:
            await self._ask(_manager("ResetFailedUnit", "s", [unit]))
        except DBusRefusal as error:
            if error.name != NO_SUCH_UNIT:  # forgotten already
                raise _refused(f"ResetFailedUnit {unit}", error) from error

    async def state(self, unit: str) -> UnitActivity:
        # Sent together, so that systemd answers them one after another, without a change between.
        asked = [
            self._property(unit, kind, name)
            for kind, name in (
                ("Unit", "ActiveState"),
                ("Service", "MainPID"),
                ("Service", "Result"),
                ("Service", "ExecMainCode"),
                ("Service", "ExecMainStatus"),
            )
        ]
        active, pid, *end = await asyncio.gather(*asked)
        if active not in ("inactive", "failed"):
            return UnitActivity(str(active), int(pid) or None)
        return UnitActivity(str(active), detail=end_in_words(*end))

    async def units(self, pattern: str) -> list[str]:
        """Return the names of all units of a pattern that are not inactive."""
        states = ["active", "reloading", "activating", "deactivating", "failed"]
        asked = _manager("ListUnitsByPatterns", "asas", [states, [pattern]])
        try:
            (listed,) = (await self._ask(asked)).body
        except DBusRefusal as error:
            raise _refused(f"ListUnitsByPatterns {pattern}", error) from error
        return [str(each[0]) for each in listed]

    async def close(self) -> None:
        bus, self._bus = self._bus, None
        if bus is not None:
            bus.disconnect()
        if self._disconnect_task is not None:
            await asyncio.wait({self._disconnect_task})

    async def _job(self, method: str, unit: str) -> str:
        for _ in range(ATTEMPTS):
            with contextlib.suppress(ConnectionLost):
                return await self._job_once(method, unit)
        raise VmError(f"{method} {unit}: the connection to systemd broke", "try again")

    async def _job_once(self, method: str, unit: str) -> str:
        # The job may end before its name is known here, so all ends are collected from now on.
        async with self._job_ends() as ends:
            try:
                (job,) = (await self._ask(_manager(method, "ss", [unit, "replace"]))).body
            except DBusRefusal as error:
                raise _refused(f"{method} {unit}", error) from error
            while True:
                end = await ends.get()
                if end is None:
                    raise ConnectionLost
                if end.job == job:
                    return end.result

    @asynccontextmanager
    async def _job_ends(self) -> AsyncIterator[asyncio.Queue[JobEnd | None]]:
        ends: asyncio.Queue[JobEnd | None] = asyncio.Queue()
        self._waiting.add(ends)
        try:
            yield ends
        finally:
            self._waiting.discard(ends)

    async def _property(self, unit: str, kind: str, name: str) -> Any:
        asked = Message(
            destination=SYSTEMD,
            path=unit_path(unit),
            interface=PROPERTIES,
            member="Get",
            signature="ss",
            body=[f"{SYSTEMD}.{kind}", name],
        )
        try:
            (value,) = (await self._ask(asked)).body
        except DBusRefusal as error:
            raise _refused(f"{name} of {unit}", error) from error
        return value.value

    async def _ask(self, message: Message) -> Message:
        """Return the reply. Raises DBusRefusal, and VmError if there is no answer."""
        with contextlib.suppress(*BUS_ERRORS):
            return await _reply(await self._connected(), message)
        message.serial = 0  # of another connection
        try:
            return await _reply(await self._connected(), message)
        except BUS_ERRORS as error:
            words = str(error) or "the connection broke"
            raise VmError(
                f"systemd does not answer over D-Bus: {words}", "systemctl status dbus.service"
            ) from error

    async def _connected(self) -> MessageBus:
        async with self._connecting:
            if self._bus is None or not self._bus.connected:
                self._bus = None
                self._bus = await self._connect()
            return self._bus

    async def _connect(self) -> MessageBus:
        bus = await MessageBus(self._address, BusType.SYSTEM).connect()
        try:
            bus.add_message_handler(self._on_message)
            dbus = "org.freedesktop.DBus"
            match = Message(dbus, "/org/freedesktop/DBus", dbus, "AddMatch", signature="s")
            match.body = [JOB_ENDS]
            await _reply(bus, match)
            await _reply(bus, _manager("Subscribe", "", []))
        except BaseException:
            bus.disconnect()
            raise
        self._disconnect_task = asyncio.create_task(self._until_lost(bus))
        return bus

    def _on_message(self, message: Message) -> None:
        if message.message_type is MessageType.SIGNAL and message.member == "JobRemoved":
            _, job, unit, result = message.body
            self._tell(JobEnd(job, unit, result))

    async def _until_lost(self, bus: MessageBus) -> None:
        with contextlib.suppress(*BUS_ERRORS):
            await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
        self._tell(None)

    def _tell(self, end: JobEnd | None) -> None:
        for ends in self._waiting:
            ends.put_nowait(end)


def unit_path(unit: str) -> str:
    """Return the D-Bus object path of a unit: all but ASCII letters and digits are in hex."""
    escaped = "".join(c if c.isascii() and c.isalnum() else f"_{ord(c):02x}" for c in unit)
    return f"{MANAGER_PATH}/unit/{escaped}"


def end_in_words(result: str, code: int, status: int) -> str:
    """Return how a unit ended, as `signal 9`, `exit-code 1` or `oom-kill`."""
    if result == "success":
        return f"exit-code {status}" if code == CLD_EXITED else ""
    return f"{result} {status}" if result in ("signal", "exit-code", "core-dump") else result


def _manager(member: str, signature: str, body: list[Any]) -> Message:
    return Message(SYSTEMD, MANAGER_PATH, MANAGER, member, signature=signature, body=body)


async def _reply(bus: MessageBus, message: Message) -> Message:
    reply: Message | None = await bus.call(message)
    if reply is None:
        raise EOFError("the connection broke")
    if reply.message_type is MessageType.ERROR:
        raise DBusRefusal(str(reply.error_name), " ".join(map(str, reply.body)))
    return reply


def _refused(what: str, error: DBusRefusal) -> VmError:
    return VmError(f"{what} was refused: {error}", "journalctl -u polkit -u dbus; ./inv doctor")

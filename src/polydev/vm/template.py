"""Templates: the memory, devices and disk of a booted VM, from which clones are resumed.

    Machine --save--> folder --sealed--> descriptors that nobody can write to
    VmConfig with that memory --machine.start--> QEMU --load--> paused clone --run_on--> clone
    Machine --give_identity--> Receipt

A template loads only into the very version and configuration of QEMU that saved it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from qemu.qmp import QMPClient, QMPError

from polydev.errors import VmError
from polydev.vm.cancel_on_timeout import within
from polydev.vm.cpu_wait_time import CpuSample
from polydev.vm.identity import (
    MAX_LINE_BYTES,
    Identity,
    Receipt,
    answers_another,
    clock_line,
    guest_time_from,
    identity_line,
    receipt_from,
)
from polydev.vm.template_client import copy_data

SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
POLL_SECONDS = 0.01
Ask = Callable[[bytes], Awaitable[bytes]]
# A guest that uses less than this share of a CPU is at rest; a page may keep one from it for ever.
IDLE_SHARE, SETTLE_SPAN_SECONDS, SETTLE_SECONDS = 0.15, 2.0, 60.0
SAVE_SECONDS, ANSWER_SECONDS = 60.0, 15.0
# QEMU starts meanwhile, which on a busy host may stand still for 20 s.
LOAD_SECONDS = 40.0
# A guest that runs for the first time sets its clock late: it translates its code meanwhile.
CLOCK_ERROR_SECONDS, CLOCK_TRIES = 0.05, 100


@asynccontextmanager
async def monitor(where: Path | socket.socket) -> AsyncIterator[QMPClient]:
    """Connect to QEMU's monitor: to its QMP socket, or over a socket that is already connected.

    Raises VmError, also if QEMU refuses a command in the meantime.
    """
    client = QMPClient()
    try:
        await client.connect(str(where) if isinstance(where, Path) else where)
        yield client
    except (QMPError, EOFError, OSError) as error:
        raise VmError(f"QEMU: {error}") from error
    finally:
        # It raises if QEMU has ended, which an earlier command has already reported.
        with suppress(QMPError, EOFError, OSError):
            await client.disconnect()


def settle(sample: Callable[[], CpuSample], alive: Callable[[], bool]) -> None:
    """Wait until a VM has little to do: work in progress would continue in each of its clones.

    Raises VmError if the VM ends.
    """
    before = sample()
    for _ in range(round(SETTLE_SECONDS / SETTLE_SPAN_SECONDS)):
        time.sleep(SETTLE_SPAN_SECONDS)
        if not alive():
            raise VmError("the VM ended before it was saved")
        now = sample()
        if now.ran - before.ran < IDLE_SHARE * (now.at - before.at):
            return
        before = now


async def save(qmp_socket: Path, state: Path) -> None:
    """Stop a VM, write the state of its devices and end QEMU. The memory is in its file then.

    Raises VmError.
    """
    stream = state.with_name(f"{state.name}.sock")
    written = asyncio.Event()

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with state.open("wb") as file:
            while data := await reader.read(1 << 20):
                file.write(data)
        writer.close()
        written.set()

    async def move() -> None:
        async with monitor(qmp_socket) as client:
            await client.execute("stop")
            await _leave_memory_in_its_file(client)
            await client.execute("migrate", {"uri": f"unix:{stream}"})
            await _migrated(client)
            await client.execute("quit")
            await written.wait()

    server = await asyncio.start_unix_server(receive, stream)
    try:
        await within(SAVE_SECONDS, move(), "the saving of the VM")
    finally:
        server.close()
        stream.unlink(missing_ok=True)


async def load(where: Path | socket.socket, state: int, seconds: float = LOAD_SECONDS) -> None:
    """Load the state of a clone's devices from a descriptor that QEMU has. The clone stays paused.

    Raises VmError.
    """

    async def move() -> None:
        async with monitor(where) as client:
            await _leave_memory_in_its_file(client)
            await client.execute("migrate-incoming", {"uri": f"fd:{state}"})
            await _migrated(client)

    await within(seconds, move(), "the loading of the template")


async def pause(qmp_socket: Path) -> None:
    """Pause a VM; its clock stops. Raises VmError."""
    async with monitor(qmp_socket) as client:
        await client.execute("stop")


async def run_on(qmp_socket: Path) -> None:
    """Continue a paused VM. Raises VmError."""
    async with monitor(qmp_socket) as client:
        await client.execute("cont")


async def give_identity(
    place: Path, identity: Identity, seconds: float = ANSWER_SECONDS
) -> Receipt:
    """Send a running VM its identity and the time, and return its receipt.

    Raises VmError if it does not answer, refuses, or has another identity.
    """
    try:
        return await within(seconds, _exchange(place, identity), "the guest's answer")
    except (OSError, EOFError, ValueError) as error:
        raise VmError(f"the guest did not accept its identity: {error}") from error


async def set_clock(place: Path, seconds: float = ANSWER_SECONDS) -> None:
    """Set the clock of a running VM. Raises VmError if it does not answer or stays wrong."""

    async def exchange() -> None:
        async with _channel(place) as ask:
            await _set_clock(ask, await _asked_time(ask))

    try:
        await within(seconds, exchange(), "the guest's answer")
    except (OSError, EOFError, ValueError) as error:
        raise VmError(f"the guest did not set its clock: {error}") from error


async def _exchange(place: Path, identity: Identity) -> Receipt:
    async with _channel(place) as ask:
        answer = await ask(identity_line(identity, time.time()))
        # A controller that ended may have left a request, whose answer comes first.
        while answers_another(answer, identity):
            answer = await ask(b"")
        receipt = receipt_from(answer, identity)
        await _set_clock(ask, receipt.guest_time)
    return receipt


@asynccontextmanager
async def _channel(place: Path) -> AsyncIterator[Ask]:
    """Yield a function that sends the guest a line and returns its answer."""
    reader, writer = await asyncio.open_unix_connection(place, limit=MAX_LINE_BYTES)

    async def ask(line: bytes) -> bytes:
        writer.write(line)
        return await reader.readuntil(b"\n")

    try:
        yield ask
    finally:
        writer.close()


async def _set_clock(ask: Ask, guest_time: float) -> None:
    """Set the guest's clock until it is right; `guest_time` is its present time."""
    # The answer takes time, so the real error of the clock is at most this.
    error, tries = guest_time - time.time(), 0
    while abs(error) > CLOCK_ERROR_SECONDS:
        if tries == CLOCK_TRIES:
            raise VmError(f"the guest's clock is off by {error:.3f} s after {tries} settings")
        error, tries = await _asked_time(ask) - time.time(), tries + 1


async def _asked_time(ask: Ask) -> float:
    return guest_time_from(await ask(clock_line(time.time())))


def sealed(file: Path) -> int:
    """Copy a file into memory that nobody can change, and return its descriptor.

    Raises OSError.
    """
    copy = os.memfd_create(file.name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with file.open("rb") as source:
            copy_data(source.fileno(), copy)
        fcntl.fcntl(copy, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(copy)
        raise
    return copy


async def _leave_memory_in_its_file(client: QMPClient) -> None:
    capability = {"capability": "x-ignore-shared", "state": True}
    await client.execute("migrate-set-capabilities", {"capabilities": [capability]})


async def _migrated(client: QMPClient) -> None:
    while True:
        found: Any = await client.execute("query-migrate")
        status = found.get("status")
        if status == "completed":
            return
        if status in ("failed", "cancelled"):
            raise VmError(f"QEMU could not move the state of its devices: {found}")
        await asyncio.sleep(POLL_SECONDS)

"""Screenshots of VMs: one at a time for each VM, shared by all requests at about that time.

A full frame takes CPU time of the guest, above all of an emulated one.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Awaitable, Callable
from contextvars import Context

from polydev.controller.entities import Vm
from polydev.controller.machines.rfb_client import PIXEL_BYTES, Frame, read_frame
from polydev.controller.session_and_vm_states import LIVE_VM_STATES
from polydev.errors import NoScreen, SessionExpired, VmError
from polydev.host_layout import VNC_PORT
from polydev.vm.cancel_on_timeout import end, within

TIMEOUT_SECONDS = 10.0
# Requests of one caller.
SCREENSHOTS_PER_SECOND = 2
SCREENSHOTS_BURST = 10
# For so long a picture also answers later requests.
FRESH_SECONDS = 1.0
# Each takes up to a hundred megabytes for a moment.
MOST_AT_ONCE = 2
PNG_START = b"\x89PNG\r\n\x1a\n"
COMPRESSION = 4


ReadVm = Callable[[], Awaitable[Vm]]


class Screenshots:
    def __init__(self, fresh_seconds: float = FRESH_SECONDS) -> None:
        self._fresh_seconds = fresh_seconds
        self._room = asyncio.Semaphore(MOST_AT_ONCE)
        self._tasks: dict[str, asyncio.Task[bytes]] = {}

    async def take(self, vm: Vm, read_vm: ReadVm) -> bytes:
        """Return the VM's screen as PNG. That neither wakes the VM nor counts as use.

        `read_vm` reads the VM's row again: once it has ended, its address may be another VM's.

        Raises SessionExpired for a VM that has ended, NoScreen for one that boots or is paused, and
        VmError if its screen does not answer.
        """
        check_has_screen(vm)
        task = self._tasks.get(vm.id)
        if task is None:
            # In a context of its own: the task serves several requests.
            task = Context().run(asyncio.create_task, self._taken(vm.vm_ip, read_vm))
            self._tasks[vm.id] = task
            task.add_done_callback(lambda done: self._forget(vm.id, done))
        return await asyncio.shield(task)

    async def close(self) -> None:
        await end(*self._tasks.values())

    async def _taken(self, address: str, read_vm: ReadVm) -> bytes:
        async with self._room:
            check_has_screen(await read_vm())
            frame = await within(TIMEOUT_SECONDS, _frame_at(address), "the VM's screen")
            check_has_screen(await read_vm())
            return await asyncio.to_thread(png_of, frame)

    def _forget(self, vm_id: str, done: asyncio.Task[bytes]) -> None:
        def forget() -> None:
            self._tasks.pop(vm_id, None)

        if done.cancelled() or done.exception() is not None:
            forget()
        else:
            done.get_loop().call_later(self._fresh_seconds, forget)


def check_has_screen(vm: Vm) -> None:
    """Raise SessionExpired or NoScreen if the VM shows no screen now."""
    if vm.state not in LIVE_VM_STATES:
        raise SessionExpired("the VM has ended", "start another session")
    if vm.paused_at is not None:
        raise NoScreen(
            "the VM is paused, and a screenshot does not wake it", "open its viewer, which does"
        )
    if vm.state != "ready":
        raise NoScreen(
            f"the VM is still booting, at stage {vm.stage}", "try again when it is ready"
        )


async def _frame_at(address: str) -> Frame:
    try:
        reader, writer = await asyncio.open_connection(address, VNC_PORT)
        try:
            return await read_frame(reader, writer)
        finally:
            writer.transport.abort()
    except (OSError, EOFError) as error:
        words = getattr(error, "strerror", None) or "it closed the connection"
        raise VmError(
            f"the VM's screen does not answer: {words}", "read the VM's console"
        ) from error


def png_of(frame: Frame) -> bytes:
    """Return the frame as a PNG file. This takes a while: call it in a thread."""
    colours = bytearray(frame.width * frame.height * 3)
    for channel in range(3):
        colours[channel::3] = frame.pixels[channel::PIXEL_BYTES]
    line, view = frame.width * 3, memoryview(colours)
    packer = zlib.compressobj(COMPRESSION)
    packed = []
    for row in range(frame.height):
        packed += [packer.compress(b"\0"), packer.compress(view[row * line : (row + 1) * line])]
    header = struct.pack(">IIBBBBB", frame.width, frame.height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", b"".join([*packed, packer.flush()])), (b"IEND", b"")]
    return PNG_START + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

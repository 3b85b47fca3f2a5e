"""Forward bytes both ways between a viewer and its VM, no faster than the slower end takes them.

Small updates are copied once. When the VM has more than a buffer holds, the kernel moves the bytes
from socket to socket through a pipe, until the VM sends little again.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import closing

from polydev.controller.machines.bridge_status import bridge_problem
from polydev.controller.relay.close_reasons import (
    BRIDGE_DOWN,
    VM_GONE,
    VNC_DOWN,
    CloseReason,
    ViewerRefused,
)
from polydev.controller.relay.spectator_filter import SpectatorFilter
from polydev.controller.relay.splice import PipePool, SplicePipe
from polydev.controller.relay.viewer import Viewer
from polydev.vm.cancel_on_timeout import limited

BUFFER_BYTES = 1 << 16
LITTLE_BYTES = 1 << 14
CONNECT_SECONDS = 5.0


class Buffers:
    """Buffer and pipes that all forwarders of an event loop share: they take turns."""

    def __init__(self) -> None:
        self.copied = memoryview(bytearray(BUFFER_BYTES))
        self.pipes = PipePool()


class Forwarder:
    """Forwards from `begin` to `end`; tells the viewer when the VM has closed the connection.

    With a `spectator_filter` the VM gets only what the filter passes.
    """

    def __init__(
        self,
        viewer: Viewer,
        vm: socket.socket,
        buffers: Buffers,
        spectator_filter: SpectatorFilter | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._viewer = viewer
        self._vm = vm
        self._number = vm.fileno()
        self._buffer = buffers.copied
        self._pipes = buffers.pipes
        self._pipe: SplicePipe | None = None
        self._rest = memoryview(b"")
        self._filter = spectator_filter

    def begin(self) -> None:
        self._viewer.on_drained = self._listen
        self._viewer.begin(self._filtered if self._filter else self._to_vm)
        self._listen()

    def end(self) -> None:
        """Stop forwarding. The viewer keeps what it has not sent yet."""
        self._viewer.on_drained = None
        self._loop.remove_reader(self._number)
        self._loop.remove_writer(self._number)

    def close(self) -> None:
        """Release the pipe once the viewer is closed. The caller closes the VM's socket."""
        self.end()
        if self._pipe is not None:
            self._pipes.give_back(self._pipe)
            self._pipe = None

    def _listen(self) -> None:
        self._loop.add_reader(self._number, self._on_vm_readable)

    def _on_vm_readable(self) -> None:
        if self._viewer.waits:  # until the last frame, ping or pong has left
            self._loop.remove_reader(self._number)
            return
        try:
            if self._pipe:
                self._splice(self._pipe)
            else:
                self._copy()
        except BlockingIOError:
            return
        except (EOFError, OSError):
            self._vm_gone()

    def _copy(self) -> None:
        count = self._vm.recv_into(self._buffer)
        if not count:
            raise EOFError
        if count == BUFFER_BYTES:
            self._pipe = self._pipes.take()
        self._viewer.send(self._buffer[:count])

    def _splice(self, pipe: SplicePipe) -> None:
        count = pipe.fill(self._number)
        if not count:
            raise EOFError
        has_left = self._viewer.send_pipe(pipe)
        if has_left and count < LITTLE_BYTES:
            self._pipes.give_back(pipe)
            self._pipe = None

    def _filtered(self, data: bytes) -> None:
        assert self._filter is not None
        filtered = self._filter.read(data)
        if filtered.passed:
            self._to_vm(filtered.passed)
        if filtered.closing is not None:
            self._viewer.pause()
            self._viewer.end(filtered.closing)

    def _to_vm(self, data: bytes) -> None:
        try:
            sent = self._vm.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._vm_gone()
            return
        if sent < len(data):
            self._rest = memoryview(data)[sent:]
            self._viewer.pause()
            self._loop.add_writer(self._number, self._on_vm_writable)

    def _on_vm_writable(self) -> None:
        try:
            self._rest = self._rest[self._vm.send(self._rest) :]
        except BlockingIOError:
            return
        except OSError:
            self._vm_gone()
            return
        if not self._rest:
            self._loop.remove_writer(self._number)
            self._viewer.resume()

    def _vm_gone(self) -> None:
        self.end()
        self._viewer.end(VM_GONE)


async def open_screen(address: str, port: int) -> socket.socket:
    """Connect to a VM's RFB port. Raises ViewerRefused if nothing answers there."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connecting = asyncio.get_running_loop().sock_connect(made, (address, port))
        await limited(CONNECT_SECONDS, connecting)
    except (OSError, asyncio.TimeoutError) as error:
        made.close()
        raise ViewerRefused(BRIDGE_DOWN if bridge_problem(error) else VNC_DOWN) from None
    except BaseException:
        made.close()
        raise
    return made


async def relay(
    viewer: Viewer,
    vm: socket.socket,
    buffers: Buffers,
    explained: Callable[[CloseReason], Awaitable[CloseReason]],
    *,
    view_only: bool = False,
) -> CloseReason:
    """Forward bytes until one side ends it, then close the viewer; return the reason it was given.

    explained   turns what ended it into what the viewer is told
    view_only   the VM gets only what a spectator needs to send
    """
    forwarder = Forwarder(viewer, vm, buffers, SpectatorFilter() if view_only else None)
    with buffers.pipes.kept(), closing(forwarder):
        forwarder.begin()
        ended = await viewer.ended
        forwarder.end()
        told = await explained(ended)
        await viewer.close(told)
    return told

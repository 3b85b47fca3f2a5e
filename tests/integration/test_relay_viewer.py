"""One viewer and its VM over local sockets, as slow and as silent as a test says."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from polydev.controller.relay.close_reasons import (
    TOO_MANY_VIEWERS,
    VIEWER_SILENT,
    VIEWER_VANISHED,
    VM_GONE,
    CloseReason,
    ViewerRefused,
)
from polydev.controller.relay.forwarding import Buffers, Forwarder
from polydev.controller.relay.limits import MOST_SPECTATORS, MOST_VIEWERS
from polydev.controller.relay.splice import PipePool
from polydev.controller.relay.viewer import Viewer
from polydev.controller.relay.viewers import ViewerEntry, Viewers
from polydev.controller.relay.websocket_takeover import UpgradedConnection
from tests.driving import until
from tests.relays import ByHand, RawViewer

BINARY, CLOSE, PING, PONG = 2, 8, 9, 10
MUCH = 8 << 20  # more than the buffers of two sockets hold
OVER = CloseReason(4000, "the session is over", "session-over")


class Bench:
    """The relay's end of a viewer, the browser's end (`far`), and the bytes for the VM."""

    def __init__(self, early: bytes = b"") -> None:
        self.beat = ByHand()
        self.to_vm: list[bytes] = []
        self.releases = 0
        near, self._far = connected()
        protocol = ServerProtocol(state=OPEN)
        ending: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.viewer = Viewer(
            UpgradedConnection(near, protocol, early, ending, self._release), self.beat
        )

    def _release(self) -> None:
        self.releases += 1

    async def far(self) -> RawViewer:
        return RawViewer(*await asyncio.open_connection(sock=self._far))

    def begin(self) -> None:
        self.viewer.begin(self.to_vm.append)

    async def until_delivered(self, data: bytes) -> None:
        async def is_delivered() -> bool:
            return b"".join(self.to_vm) == data

        await until(is_delivered, "the bytes for the VM")


def connected() -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection over TCP."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        near, _ = server.accept()
    near.setblocking(False)
    return near, far


def play(scenario: Callable[[Bench], Awaitable[None]], early: bytes = b"") -> None:
    async def played() -> None:
        bench = Bench(early)
        try:
            await asyncio.wait_for(scenario(bench), 60)
        finally:
            bench.viewer.abort()
            bench._far.close()

    asyncio.run(played())


def test_bytes_read_before_takeover_are_delivered_first() -> None:
    async def scenario(bench: Bench) -> None:
        bench.begin()
        (await bench.far()).send(BINARY, b" and late")
        await bench.until_delivered(b"early and late")
        assert bench.viewer.bytes_from == len(b"early and late")

    play(scenario, early=b"early")


def test_paused_viewer_is_not_considered_dead() -> None:
    async def scenario(bench: Bench) -> None:
        viewer = bench.viewer
        bench.begin()
        bench.beat.beat()
        viewer.pause()  # its VM takes nothing
        for _ in range(3):
            bench.beat.beat()
        viewer.resume()
        bench.beat.beat()  # before anything could be read
        assert not viewer.ended.done()
        bench.beat.beat()
        assert viewer.ended.result() is VIEWER_SILENT

    play(scenario)


def test_pings_follow_a_partly_sent_frame() -> None:
    async def scenario(bench: Bench) -> None:
        viewer, data = bench.viewer, os.urandom(MUCH)
        drained = asyncio.Event()
        viewer.on_drained = drained.set
        bench.begin()
        assert not viewer.send(memoryview(data))
        assert viewer.waits
        bench.beat.beat()
        far = await bench.far()
        assert await far.frame() == (BINARY, data)
        assert await far.frame() == (PING, b"")
        await drained.wait()
        assert not viewer.waits
        assert viewer.bytes_to == MUCH

    play(scenario)


def test_send_detects_vanished_viewer() -> None:
    async def scenario(bench: Bench) -> None:
        viewer = bench.viewer
        linger = struct.pack("ii", 1, 0)  # a reset, at once
        bench._far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        bench._far.close()
        wait_for_event(viewer._socket, 0)  # the kernel may pass the reset on later
        assert not viewer.send(memoryview(b"the screen"))
        assert not viewer.waits
        assert viewer.ended.result() is VIEWER_VANISHED

    play(scenario)


def test_vm_is_not_read_while_viewer_has_unsent_bytes() -> None:
    async def scenario(bench: Bench) -> None:
        viewer, data = bench.viewer, os.urandom(MUCH)
        near, vm = connected()
        assert not viewer.send(memoryview(data))
        pump = Forwarder(viewer, near, Buffers())
        pump.begin()
        try:
            vm.sendall(b"the screen")
            wait_for_event(near, select.POLLIN)
            for _ in range(10):
                await asyncio.sleep(0)
            assert readable(near), "it was read"
            far = await bench.far()
            assert await far.frame() == (BINARY, data)
            assert await far.frame() == (BINARY, b"the screen")
            vm.close()
            assert await viewer.ended is VM_GONE
        finally:
            pump.close()
            near.close()

    play(scenario)


def wait_for_event(connection: socket.socket, events: int) -> None:
    """Wait until the kernel reports one of these events, or that the connection broke."""
    waiting = select.poll()
    waiting.register(connection, events)
    assert waiting.poll(60_000)


def readable(connection: socket.socket) -> bool:
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


def test_bytes_after_close_are_dropped() -> None:
    async def scenario(bench: Bench) -> None:
        bench.begin()
        far = await bench.far()
        closing = asyncio.create_task(bench.viewer.close(OVER))
        assert await far.frame() == (CLOSE, OVER.code.to_bytes(2, "big") + OVER.reason.encode())
        far.send(BINARY, b"too late")
        far.writer.write_eof()
        await closing
        assert bench.to_vm == []

    play(scenario)


def test_no_ping_follows_the_close_frame() -> None:
    async def scenario(bench: Bench) -> None:
        viewer, data = bench.viewer, os.urandom(MUCH)
        bench.begin()
        assert not viewer.send(memoryview(data))
        closing = asyncio.create_task(viewer.close(OVER))
        await asyncio.sleep(0)  # until the close frame waits
        bench.beat.beat()
        far = await bench.far()
        assert await far.frame() == (BINARY, data)
        assert (await far.frame())[0] == CLOSE
        assert await far.reader.read() == b""
        far.writer.write_eof()
        await closing

    play(scenario)


def test_viewer_that_ignores_close_is_disconnected() -> None:
    async def scenario(bench: Bench) -> None:
        bench.begin()
        far = await bench.far()
        await bench.viewer.close(OVER, within_seconds=0)
        assert bench.viewer.ended.result() is OVER
        assert await far.frame() == (CLOSE, OVER.code.to_bytes(2, "big") + OVER.reason.encode())
        assert await far.reader.read() == b""
        bench.viewer.abort()
        assert bench.releases == 1, "the server would keep the connection"

    play(scenario)


def test_pipe_with_leftover_bytes_is_not_reused() -> None:
    pipes = PipePool()
    near, far = connected()
    with near, far, pipes.kept():
        empty, full = pipes.take(), pipes.take()
        far.sendall(b"of one viewer")
        wait_for_event(near, select.POLLIN)
        assert full.fill(near.fileno()) == full.held > 0
        pipes.give_back(empty)
        pipes.give_back(full)
        taken = [pipes.take(), pipes.take()]
        assert empty in taken
        assert [pipe.held for pipe in taken] == [0, 0]
        for pipe in taken:
            pipes.give_back(pipe)


def test_session_end_before_admission_refuses_the_viewer() -> None:
    async def scenario(bench: Bench) -> None:
        entry = ViewerEntry("a session", bench.viewer)
        entry.end(OVER)
        assert not bench.viewer.ended.done()
        viewers = Viewers(cast(Any, None), cast(Any, None))
        with pytest.raises(ViewerRefused) as refused:
            viewers.admit(entry)
        assert refused.value.closing is OVER
        assert not entry.is_admitted
        entry.is_admitted = True
        entry.end(OVER)
        assert bench.viewer.ended.result() is OVER

    play(scenario)


def test_spectators_leave_places_for_the_owner() -> None:
    async def scenario(bench: Bench) -> None:
        viewers = Viewers(cast(Any, None), cast(Any, None))

        def entry(*, view_only: bool) -> ViewerEntry:
            made = ViewerEntry("a session", bench.viewer)
            made.view_only = view_only
            viewers._entries.add(made)
            return made

        for _ in range(MOST_SPECTATORS):
            viewers.admit(entry(view_only=True))
        with pytest.raises(ViewerRefused) as refused:
            viewers.admit(entry(view_only=True))
        assert refused.value.closing is TOO_MANY_VIEWERS
        for _ in range(MOST_VIEWERS - MOST_SPECTATORS):
            viewers.admit(entry(view_only=False))

    play(scenario)

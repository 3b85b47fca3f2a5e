"""A viewer's WebSocket: frames out, bytes in, pings, and the closing handshake.

Only whole frames may follow one another, so whatever has to be said in between waits until the
frame under way has left. Nothing else is ever kept for a viewer: who sends must wait for
`on_drained` once a frame did not leave at once.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from polydev.controller.relay.close_reasons import (
    RESTARTING,
    TOO_MANY_FRAMES,
    VANISHED,
    VIEWER_SILENT,
    VIEWER_VANISHED,
    CloseReason,
)
from polydev.controller.relay.frames import PING, FrameReader, binary_header, close_frame
from polydev.controller.relay.keepalive import KeepaliveTimer
from polydev.controller.relay.splice import SplicePipe
from polydev.controller.relay.takeover import UpgradedConnection

READ_BYTES = 1 << 13  # few enough that reading as many empty frames delays nobody
CLOSE_SECONDS = 5.0

Deliver = Callable[[bytes], None]


class Viewer:
    """`ended` is set once to why it is to be closed, by whoever knows first.

    bytes_to, bytes_from    what went to the viewer and came from it, without frames
    on_drained              called when a frame that had to wait has left
    may_send                whether it may send so many frames more; they are counted
    """

    def __init__(self, connection: UpgradedConnection, keepalive: KeepaliveTimer) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._socket = connection.socket
        self._number = connection.socket.fileno()
        self._reader = FrameReader(connection.protocol)
        self._keepalive = keepalive
        self.ended: asyncio.Future[CloseReason] = self._loop.create_future()
        self.bytes_to = 0
        self.bytes_from = 0
        self.on_drained: Callable[[], None] | None = None
        self.may_send: Callable[[int], bool] = lambda _frames: True
        self._deliver: Deliver | None = None
        self._rest = memoryview(b"")
        self._pipe: SplicePipe | None = None
        self._asides: dict[Literal["ping", "pong", "close"], bytes] = {}
        self._waits = False
        self._is_reading = False
        self._is_closing = False
        self._settled = asyncio.Event()
        self._ping_is_due = False
        self._gave_sign = False
        self._heard_at = self._loop.time()
        connection.ending.add_done_callback(self._restart)

    @property
    def waits(self) -> bool:
        """Whether something has not left yet, so that no frame may be sent."""
        return self._waits

    def was_heard_within(self, seconds: float) -> bool:
        """Whether it gave a sign of life in that time: it may be gone, but not yet missed."""
        return self._loop.time() - self._heard_at < seconds

    def end(self, closing: CloseReason) -> None:
        """Say why it is to be closed; only the first word counts."""
        if not self.ended.done():
            self.ended.set_result(closing)

    def _restart(self, _ending: asyncio.Future[None]) -> None:
        self.end(RESTARTING)

    # Out

    def send(self, data: memoryview) -> bool:
        """One frame; whether it has left already. What has not is copied, so `data` is free."""
        header = binary_header(len(data))
        try:
            sent = self._socket.sendmsg((header, data))
        except BlockingIOError:
            sent = 0
        except OSError:
            self._leave()
            return False
        self.bytes_to += len(data)
        if sent == len(header) + len(data):
            return True
        self._rest = memoryview(b"".join((header, data)))[sent:]
        self._wait()
        return False

    def send_pipe(self, pipe: SplicePipe) -> bool:
        """One frame of all that is in the pipe; whether it has left already."""
        self.bytes_to += pipe.held
        self._rest = memoryview(binary_header(pipe.held))
        self._pipe = pipe
        return self._flush()

    def _say(self, kind: Literal["ping", "pong", "close"], frame: bytes) -> None:
        self._asides[kind] = frame
        if not self._waits:
            self._flush()

    def _flush(self) -> bool:
        try:
            self._push()
        except BlockingIOError:
            self._wait()
            return False
        except OSError:
            self._leave()
            return False
        return True

    def _push(self) -> None:
        """Send all that is there. Raises BlockingIOError before it has left."""
        while self._rest or self._pipe or self._asides:
            more = socket.MSG_MORE if self._pipe else 0
            while self._rest:
                self._rest = self._rest[self._socket.send(self._rest, more) :]
            if self._pipe is not None:
                self._pipe.drain(self._number)
                self._pipe = None
            self._rest = memoryview(b"".join(self._asides.values()))
            self._asides.clear()

    def _wait(self) -> None:
        if not self._waits:
            self._waits = True
            self._loop.add_writer(self._number, self._on_writable)

    def _on_writable(self) -> None:
        if "ping" in self._asides:  # it only is slow
            self._give_sign()
        if not self._flush():
            return
        self._loop.remove_writer(self._number)
        self._waits = False
        if self._is_closing:
            self._finish()
        elif self.on_drained is not None:
            self.on_drained()

    # In

    def begin(self, deliver: Deliver) -> None:
        """Read from now on, and ask for signs of life."""
        self._deliver = deliver
        self._keepalive.add(self._tick)
        self.resume()
        if self._connection.early:
            self._take(self._connection.early)

    def pause(self) -> None:
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._number)

    def resume(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            self._ping_is_due = False  # what it has said meanwhile is yet to be read
            self._loop.add_reader(self._number, self._on_readable)

    def _on_readable(self) -> None:
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._leave()
        elif not self._is_closing:
            self._take_frames(data)

    def _give_sign(self) -> None:
        self._gave_sign = True
        self._heard_at = self._loop.time()

    def _take_frames(self, data: bytes) -> None:
        self._give_sign()
        received = self._reader.read(data)
        if not self.may_send(received.frames):
            self.pause()
            self.end(TOO_MANY_FRAMES)
            return
        if received.pong is not None:
            self._say("pong", received.pong)
        if received.data:
            self._take(received.data)
        if received.closing is not None:
            self.pause()
            self.end(received.closing)

    def _take(self, data: bytes) -> None:
        self.bytes_from += len(data)
        if self._deliver is not None:
            self._deliver(data)

    def _tick(self) -> None:
        """Send a ping; a viewer that gave no sign of life since the last one is gone."""
        can_be_heard = self._is_reading
        if self._ping_is_due and can_be_heard and not self._gave_sign:
            self.end(VIEWER_SILENT)
            return
        self._gave_sign = False
        self._ping_is_due = True
        self._say("ping", PING)

    # The end

    async def close(self, closing: CloseReason, within_seconds: float = CLOSE_SECONDS) -> None:
        """Say why, if anybody listens, and close; what the viewer still says is not read."""
        self.end(closing)
        self._keepalive.remove(self._tick)
        self._is_closing = True
        if closing.code != VANISHED:
            self._asides.clear()
            self._say("close", close_frame(closing))
            self.resume()
            if not self._waits:
                self._finish()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._settled.wait(), within_seconds)
        self.abort()

    def _finish(self) -> None:
        """All has left: the viewer sees the end, and its own end is waited for."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._leave()

    def _leave(self) -> None:
        """The viewer is not there any more."""
        self.pause()
        self.end(VIEWER_VANISHED)
        self._settled.set()

    def abort(self) -> None:
        """Let the connection go as it is; again is nothing."""
        if self._socket.fileno() < 0:
            return
        self.pause()
        if self._waits:
            self._waits = False
            self._loop.remove_writer(self._number)
        self._keepalive.remove(self._tick)
        self._connection.ending.remove_done_callback(self._restart)
        self._socket.close()
        self._connection.release()

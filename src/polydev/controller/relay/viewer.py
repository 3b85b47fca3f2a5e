"""The WebSocket of one viewer: frames out, bytes in, pings, and the closing handshake.

A frame must not be cut by another one, so pings, pongs and the close frame wait until the frame
under way has left. Nothing else is buffered for a viewer: when a frame did not leave at once, the
sender waits for `on_drained`.
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
from polydev.controller.relay.websocket_takeover import UpgradedConnection
from polydev.vm.cancel_on_timeout import limited

READ_BYTES = 1 << 13  # even if all of it is empty frames, reading them is quick
CLOSE_SECONDS = 5.0

Deliver = Callable[[bytes], None]


class Viewer:
    """One viewer; `ended` is set to the first reason to close it.

    bytes_to, bytes_from    payload bytes that went to the viewer and came from it
    on_drained              called when a frame that had to wait has left
    may_send                counts frames that the viewer has sent; False: it sends too many
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
        """Whether something has not left yet: no frame may be sent until it has."""
        return self._waits

    def was_heard_within(self, seconds: float) -> bool:
        """Whether the viewer gave a sign of life in that time; a dead one is found only later."""
        return self._loop.time() - self._heard_at < seconds

    def end(self, closing: CloseReason) -> None:
        """Set the reason to close the viewer; only the first one counts."""
        if not self.ended.done():
            self.ended.set_result(closing)

    def _restart(self, _ending: asyncio.Future[None]) -> None:
        self.end(RESTARTING)

    # Out

    def send(self, data: memoryview) -> bool:
        """Send one frame; return whether it has left. The rest is copied: `data` is free."""
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
        """Send all that is in the pipe as one frame; return whether it has left."""
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
        """Send all that waits. Raises BlockingIOError when the socket takes no more for now."""
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
        if "ping" in self._asides:  # it takes bytes again: slow, but alive
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
        """Start to read, and to send pings."""
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
            self._ping_is_due = False  # its pong may be among what was not read yet
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
        """Send the close frame if the viewer is there, and close. Ignore what it still sends."""
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
                await limited(within_seconds, self._settled.wait())
        self.abort()

    def _finish(self) -> None:
        """End our half once all has left; the viewer ends its own in turn."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._leave()

    def _leave(self) -> None:
        """Note that the viewer is gone."""
        self.pause()
        self.end(VIEWER_VANISHED)
        self._settled.set()

    def abort(self) -> None:
        """Close the socket at once. May be called again."""
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

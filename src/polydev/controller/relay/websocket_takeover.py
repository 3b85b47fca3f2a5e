"""Take over a WebSocket connection with its socket, once uvicorn has made the handshake.

Through ASGI, every few kilobytes would cost a message, a queue and a task switch. A route that has
accepted a connection gets its socket instead, and uvicorn only counts the connection. Under TLS the
route gets one end of a socket pair; `TlsProxy` carries the bytes between the other end and TLS.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from starlette.websockets import WebSocket
from websockets import http11
from websockets.http11 import Request
from websockets.server import ServerProtocol

from polydev.controller.relay.tls_proxy import TlsProxy
from polydev.controller.request_limits import (
    MALFORMED,
    MOST_HEADER_BYTES,
    MOST_HEADERS,
)
from polydev.controller.tcp_or_tls_transport import is_tls, watch_every_byte
from polydev.controller.uvicorn_internals import (
    ServerState,
    UvicornConfig,
    WebSocketsSansIOProtocol,
)

# The websockets library parses the request again: give it the limits of our HTTP.
http11.MAX_LINE_LENGTH = MOST_HEADER_BYTES
http11.MAX_NUM_HEADERS = MOST_HEADERS

HANDSHAKE_SECONDS = 10.0
MOST_MESSAGE_BYTES = 1 << 20
# More unsent bytes would show a slow viewer an old picture, and hold pings back.
MOST_UNSENT_BYTES = 1 << 20
# In RFB the server speaks first: a viewer has nothing to send before the takeover.
MOST_EARLY_BYTES = 4096
EXTENSION = "polydev.take_over"
# At lower levels both libraries log the URL, and with it the token in its query.
QUIET = logging.getLogger(f"{__name__}.quiet")
QUIET.setLevel(logging.WARNING)


class NoTakeover(RuntimeError):
    """The server does not use RelayProtocol: it is configured wrongly."""


@dataclass(frozen=True)
class UpgradedConnection:
    """A connection after the WebSocket handshake, with its socket.

    early       what the viewer sent before the takeover
    ending      done as soon as the server is told to end
    release     closes uvicorn's side; call it at the end
    """

    socket: socket.socket
    protocol: ServerProtocol
    early: bytes
    ending: asyncio.Future[None]
    release: Callable[[], None]


class RelayProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, without compression: `UvicornConfig(ws=RelayProtocol)`."""

    def __init__(
        self,
        config: UvicornConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.logger = QUIET
        self.conn = ServerProtocol(max_size=MOST_MESSAGE_BYTES, logger=QUIET)
        self._ending: asyncio.Future[None] = self.loop.create_future()
        self._is_taken = False
        self._is_asked = False
        self._early_bytes = 0
        self._handshake: asyncio.TimerHandle | None = None
        self._tls_proxy: TlsProxy | None = None
        if getattr(server_state, "draining_seconds", None) is not None:
            self._ending.set_result(None)  # the server was told to end before the upgrade

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # This also ends a client that is refused and never reads the answer.
        self._handshake = self.loop.call_later(HANDSHAKE_SECONDS, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._end_handshake()
        if self._tls_proxy is not None:
            self._tls_proxy.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._tls_proxy is not None:
            self._tls_proxy.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._tls_proxy is not None:
            self._tls_proxy.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._tls_proxy is not None:
            self._tls_proxy.write(data)
            return
        if self._is_asked:
            self._early_bytes += len(data)
            if self._early_bytes > MOST_EARLY_BYTES:
                self.transport.abort()
                return
        super().data_received(data)
        # The base class answers a request that is no handshake, but not one that it cannot parse.
        if self.conn.handshake_exc is not None and not self.transport.is_closing():
            self.transport.write(b"".join(self.conn.data_to_send()) or MALFORMED.answer())
            self.transport.close()

    def _end_handshake(self) -> None:
        if self._handshake is not None:
            self._handshake.cancel()

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        self._is_asked = True
        if self.response.status_code == 101:
            self.scope["extensions"][EXTENSION] = {"now": self.take_over}
            # Then `writable` says whether the answer to the handshake has left.
            watch_every_byte(self.transport)

    def shutdown(self) -> None:
        if not self._ending.done():
            self._ending.set_result(None)
        if self.handshake_complete and not self._is_taken:
            super().shutdown()

    async def take_over(self) -> UpgradedConnection:
        """Return the connection, which uvicorn neither reads nor writes any more.

        Raises ConnectionError if it is closed.
        """
        self._is_taken = True
        self.stop_keepalive()
        await self.writable.wait()
        if self.transport.is_closing():
            raise ConnectionAbortedError("closed during the handshake")
        self._end_handshake()
        # The relay reads what comes from now on; here it would count as sent too early.
        if self.transport.is_reading():
            self.transport.pause_reading()
        taken = await self._decrypted() if is_tls(self.transport) else self._as_it_is()
        return UpgradedConnection(
            taken, self.conn, self._early(), self._ending, self.transport.abort
        )

    def _as_it_is(self) -> socket.socket:
        return _own_socket(self.transport.get_extra_info("socket").fileno())

    async def _decrypted(self) -> socket.socket:
        """Return one end of a socket pair, which looks like the connection without TLS."""
        _own_socket(
            self.transport.get_extra_info("socket").fileno()
        ).close()  # only to set its options
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        try:
            made = await self.loop.create_unix_connection(
                lambda: TlsProxy(self.transport), sock=far
            )
            if self.transport.is_closing():
                made[0].abort()
                raise ConnectionAbortedError("closed during the handshake")
        except BaseException:
            near.close()
            far.close()
            raise
        self._tls_proxy = made[1]
        self.transport.set_write_buffer_limits()
        self.transport.resume_reading()
        return near

    def _early(self) -> bytes:
        parts = []
        while not self.queue.empty():
            message = self.queue.get_nowait()
            if message["type"] == "websocket.receive":
                parts.append(message.get("bytes") or b"")
        return b"".join([*parts, *self.frames])


def _own_socket(number: int) -> socket.socket:
    """Duplicate the descriptor: an event loop refuses to watch one that a transport uses."""
    made = socket.socket(fileno=os.dup(number))
    made.setblocking(False)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MOST_UNSENT_BYTES)
    if _is_loopback(made):
        # Nothing gets lost on the way to a proxy on this host. BBR's pacing would only set timers,
        # which take a large part of the CPU time of a screen.
        with suppress(OSError):
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    return made


def _is_loopback(connected: socket.socket) -> bool:
    try:
        return ip_address(connected.getpeername()[0]).is_loopback
    except (OSError, ValueError):  # closed just now, or a Unix socket
        return False


async def take_over(websocket: WebSocket, subprotocol: str | None) -> UpgradedConnection:
    """Accept the upgrade and take the connection over. Raises NoTakeover, ConnectionError."""
    extension = websocket.scope.get("extensions", {}).get(EXTENSION)
    if extension is None:
        raise NoTakeover("uvicorn must be configured with ws=RelayProtocol")
    await websocket.accept(subprotocol)
    connection: UpgradedConnection = await extension["now"]()
    return connection

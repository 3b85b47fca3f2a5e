"""The agent's HTTP server: the standard library's, with limits for clients.

A connection has one request. The bytes and seconds of a request are limited, and so is the number
of connections.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedReader, RawIOBase
from threading import Lock
from time import monotonic

from polydev.agent.errors import RequestRefused
from polydev.agent.http_messages import HttpReply, HttpRequest, problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from polydev.agent.settings import AgentSettings

BACKLOG = 128
MAX_BODY_BYTES = 128 * 1024
MOST_LENGTH_DIGITS = 20
MAX_HEAD_BYTES = 16 * 1024
LINGER_BYTES = 2 * MAX_BODY_BYTES
NO_ROOM = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n"
    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)


def log(line: str) -> None:
    """Write a line to the journal, complete even if several threads write."""
    try:
        os.write(2, f"{line}\n".encode("ascii", "backslashreplace"))
    except OSError:
        pass  # without a log, the agent still answers


def listening_socket(address: str, port: int, inherited: int | None = None) -> socket.socket:
    """Return the socket passed by systemd, or a new one; port 0 takes any free port."""
    if inherited is not None:
        return socket.socket(fileno=inherited)
    return socket.create_server((address, port), backlog=BACKLOG)


class LimitedReader(RawIOBase):
    """Reads what a client sends, up to `limit_bytes`, within `timeout_seconds` in total."""

    def __init__(self, client: socket.socket, limit_bytes: int, timeout_seconds: float) -> None:
        self._client = client
        self._left = limit_bytes
        self._ends = monotonic() + timeout_seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        if self._left == 0:
            return 0
        self._client.settimeout(max(self._ends - monotonic(), 0.001))
        count = self._client.recv_into(memoryview(buffer)[: self._left])
        self._left -= count
        return count

    @property
    def is_too_much(self) -> bool:
        return self._left == 0


class Handler(BaseHTTPRequestHandler):
    """Reads one request and sends the reply."""

    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # so that replies to invalid requests have a head
    server_version, sys_version = "polydev-agent", ""
    server: AgentServer

    def setup(self) -> None:
        super().setup()
        limits = MAX_HEAD_BYTES + MAX_BODY_BYTES, self.server.settings.request_timeout_seconds
        self._received = LimitedReader(self.connection, *limits)
        self.rfile = BufferedReader(self._received)  # type: ignore[type-var]

    def handle(self) -> None:
        self.handle_one_request()

    def finish(self) -> None:
        """Read remaining input, or the kernel would reset the connection before the reply."""
        self.server.note(self.connection, waits=True)
        super().finish()
        self.connection.shutdown(socket.SHUT_WR)
        seconds = self.server.settings.reply_timeout_seconds
        rest = LimitedReader(self.connection, LINGER_BYTES, seconds)
        while rest.readinto(bytearray(4096)):
            pass

    def do_GET(self) -> None:
        try:
            body = self._body()
        except RequestRefused as refusal:
            self._send(problem(refusal.status, refusal.why))
            return
        path = self.path.partition("#")[0].partition("?")[0]
        request = HttpRequest(self.command, path, body, is_from_guest=self._is_from_guest())
        self.server.note(self.connection, waits=False)
        self._send(self.server.answer(request))

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - the library's names

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send an error of the library, for requests that are not valid HTTP."""
        self._send(problem(code, explain or message or ""))

    def log_message(self, format: str, *args: object) -> None:
        log(f"{self.client_address[0]} {format % args}")

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Log nothing: `_send` logs errors."""

    def _is_from_guest(self) -> bool:
        """Whether a program of this VM asks: over loopback, or from the VM's own address."""
        peer, own = self.client_address[0], self.connection.getsockname()[0]
        loopback = self.server.settings.loopback_prefix
        return peer == own or peer.startswith(loopback) or own.startswith(loopback)

    def _body(self) -> bytes:
        """Read the body. Raises RequestRefused if it is not acceptable."""
        length = self.headers.get("Content-Length", "0")
        if self.headers.get("Transfer-Encoding") or not length.isdecimal():
            raise RequestRefused(411, "a body needs a Content-Length in bytes")
        # int() raises ValueError for thousands of digits.
        is_too_long = len(length) > MOST_LENGTH_DIGITS or int(length) > MAX_BODY_BYTES
        if self._received.is_too_much or is_too_long:
            raise RequestRefused(413, f"a body may have {MAX_BODY_BYTES} bytes")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise RequestRefused(400, "the connection closed within a request")
        return body

    def _send(self, reply: HttpReply) -> None:
        if reply.status >= 400:
            asked = getattr(self, "requestline", "?")
            log(f"{self.client_address[0]} {asked} {reply.status} {reply.note}")
        self.connection.settimeout(self.server.settings.reply_timeout_seconds)
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(len(reply.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)


class AgentServer(ThreadingHTTPServer):
    """Answers each connection in its own thread, up to a limit.

    At the limit, the oldest client that the server waits for is disconnected; if it waits for none,
    the new client gets 503.
    """

    daemon_threads = True

    def __init__(
        self,
        listener: socket.socket,
        answer: Callable[[HttpRequest], HttpReply],
        settings: AgentSettings,
    ) -> None:
        super().__init__(listener.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.settings = settings
        self._answer = answer
        self._waits: dict[socket.socket, bool] = {}  # for each connection, oldest first
        self._lock = Lock()

    def serve(self) -> None:
        """Serve until the process is stopped, without the library's polling twice a second."""
        self.serve_forever(poll_interval=None)  # type: ignore[arg-type]

    def answer(self, request: HttpRequest) -> HttpReply:
        try:
            return self._answer(request)
        except Exception as error:
            return problem(500, f"the agent itself failed: {error!r}")

    def note(self, client: socket.socket, *, waits: bool) -> None:
        """Note whether the server waits for the client."""
        with self._lock:
            if client in self._waits:
                self._waits[client] = waits

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._make_room():
            with self._lock:
                self._waits[request] = True
            super().process_request(request, client_address)
            return
        with suppress(OSError):
            request.setblocking(False)  # a new connection has room for these few bytes
            request.sendall(NO_ROOM)
        request.close()

    def _make_room(self) -> bool:
        with self._lock:
            if len(self._waits) < self.settings.max_connections:
                return True
            oldest = next((client for client, waits in self._waits.items() if waits), None)
            if oldest is None:
                return False
            del self._waits[oldest]
            with suppress(OSError):  # it has already closed
                oldest.shutdown(socket.SHUT_RDWR)  # its thread closes it
            return True

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._waits.pop(request, None)
            request.close()

    def handle_error(self, request: object, client_address: Any) -> None:
        log(f"{client_address[0]} left: {sys.exc_info()[1]}")

"""The sockets of the agent's HTTP: accept, read one request, reply, close.

Hand-made because a guest boots on emulated CPUs. Measured in one (QEMU's TCG, Debian's Python
3.11, everything precompiled): the bare interpreter starts in 115 ms, `import http.server` adds
340 ms and 90 modules, the whole agent 50 ms and 29 modules; natively 23 ms against 3.5 ms.
"""

from __future__ import annotations

import os
from _socket import AF_INET, SHUT_RDWR, SHUT_WR, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket
from _thread import allocate_lock, start_new_thread
from time import monotonic, sleep, time

from polydev.agent.errors import RequestRefused
from polydev.agent.http import (
    HEAD_END,
    MAX_HEAD_BYTES,
    Reply,
    Request,
    problem,
    reply_bytes,
    request_of_head,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from polydev.agent.settings import Settings

BACKLOG = 128
CHUNK_BYTES = 4096
LINGER_SECONDS = 1.0
LINGER_BYTES = 65536
ACCEPT_RETRY_SECONDS = 0.1


def log(line: str) -> None:
    """One line to the journal, whole even when threads write at once."""
    try:
        os.write(2, f"{line}\n".encode("ascii", "backslashreplace"))
    except OSError:
        pass  # an agent that nobody reads still answers


def listening_socket(address: str, port: int, inherited: int | None = None) -> socket:
    """The socket handed over by systemd, or one bound here; port 0 takes any free one."""
    if inherited is not None:
        return socket(fileno=inherited)
    listener = socket(AF_INET, SOCK_STREAM)
    listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(BACKLOG)
    return listener


def read_head(client: socket, timeout_seconds: float) -> bytes | None:
    """What comes before a request's empty line; None from a client that never said a thing."""
    ends = monotonic() + timeout_seconds
    data = b""
    while (end := data.find(HEAD_END)) < 0 and len(data) <= MAX_HEAD_BYTES:
        try:
            client.settimeout(max(ends - monotonic(), 0.001))
            chunk = client.recv(CHUNK_BYTES)
        except TimeoutError:
            if not data:
                return None
            raise RequestRefused(408, "the request took too long to arrive") from None
        if not chunk:
            if not data:
                return None
            raise RequestRefused(400, "the connection closed within a request")
        data += chunk
    if not 0 <= end <= MAX_HEAD_BYTES:
        raise RequestRefused(431, f"more than {MAX_HEAD_BYTES} bytes before the empty line")
    return data[:end]


def linger(client: socket) -> None:
    """Let the client have the reply: closing on unread input would make the kernel reset."""
    client.shutdown(SHUT_WR)
    ends = monotonic() + LINGER_SECONDS
    unread = LINGER_BYTES
    while unread > 0 and (left := ends - monotonic()) > 0:
        client.settimeout(left)
        chunk = client.recv(CHUNK_BYTES)
        if not chunk:
            return
        unread -= len(chunk)


class Connection:
    """A client's socket, and whether it is the client's turn to do something."""

    __slots__ = ("peer", "socket", "waiting")

    def __init__(self, accepted: socket, peer: str) -> None:
        self.socket = accepted
        self.peer = peer
        self.waiting = True


class Server:
    """Answers each connection in a thread of its own, a limited number at a time.

    When all places are taken, the oldest client that we wait for has to leave; when we wait
    for none, the newcomer is told to come back.
    """

    def __init__(
        self, listener: socket, answer: Callable[[Request], Reply], settings: Settings
    ) -> None:
        self._listener = listener
        self._answer = answer
        self._settings = settings
        self._open: dict[Connection, None] = {}  # oldest first
        self._lock = allocate_lock()

    def serve_forever(self) -> None:
        self._listener.settimeout(None)
        while True:
            try:
                descriptor, address = self._listener._accept()  # type: ignore[attr-defined]
            except OSError as error:  # the client left again, or no descriptors are left
                log(f"cannot accept a connection: {error.strerror}")
                sleep(ACCEPT_RETRY_SECONDS)
                continue
            self._admit(Connection(socket(fileno=descriptor), str(address[0])))

    def _admit(self, connection: Connection) -> None:
        if not self._make_room():
            self._turn_away(connection)
            return
        with self._lock:
            self._open[connection] = None
        try:
            start_new_thread(self._serve, (connection,))
        except RuntimeError as error:
            log(f"cannot serve {connection.peer}: {error}")
            self._close(connection)

    def _make_room(self) -> bool:
        with self._lock:
            if len(self._open) < self._settings.max_connections:
                return True
            slowest = next((other for other in self._open if other.waiting), None)
            if slowest is None:
                return False
            del self._open[slowest]
            _wake(slowest.socket)  # its thread closes it
            return True

    def _turn_away(self, connection: Connection) -> None:
        refusal = problem(503, "too many connections", {"Retry-After": "1"})
        try:
            connection.socket.settimeout(0)  # a new connection has room for so few bytes
            self._send(connection, None, refusal)
        except OSError as error:
            log(f"{connection.peer} left: {error}")
        connection.socket.close()

    def _serve(self, connection: Connection) -> None:
        try:
            self._converse(connection)
        except OSError as error:
            log(f"{connection.peer} left: {error}")
        finally:
            self._close(connection)

    def _converse(self, connection: Connection) -> None:
        request = None
        try:
            head = read_head(connection.socket, self._settings.request_timeout_seconds)
            connection.waiting = False
            if head is None:
                return
            request = request_of_head(head)
            reply = self._answer_safely(request)
        except RequestRefused as refusal:
            connection.waiting = False
            reply = problem(refusal.status, refusal.why)
        connection.socket.settimeout(self._settings.reply_timeout_seconds)
        self._send(connection, request, reply)
        connection.waiting = True
        linger(connection.socket)

    def _answer_safely(self, request: Request) -> Reply:
        try:
            return self._answer(request)
        except Exception as error:
            return problem(500, f"the agent itself broke: {error!r}")

    def _send(self, connection: Connection, request: Request | None, reply: Reply) -> None:
        if reply.status != 200:
            asked = f"{request.method} {request.path}" if request else "?"
            log(f"{connection.peer} {asked} {reply.status} {reply.note}")
        with_body = request is None or request.method != "HEAD"
        connection.socket.sendall(reply_bytes(reply, time(), with_body=with_body))

    def _close(self, connection: Connection) -> None:
        with self._lock:
            self._open.pop(connection, None)
            connection.socket.close()


def _wake(client: socket) -> None:
    """End whatever a thread waits for on this socket."""
    try:
        client.shutdown(SHUT_RDWR)
    except OSError as error:
        log(f"a client left by itself: {error}")

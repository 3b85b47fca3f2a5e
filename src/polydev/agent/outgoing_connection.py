"""Connections that the agent opens for its checks, with one deadline for all and errors in words.

They use `_socket`, the C part of the standard library's `socket`. The Python part imports
`selectors`, `enum` and 24 other modules, which takes a tenth of a second in an emulated guest.
"""

from __future__ import annotations

from _socket import AF_INET, AF_UNIX, SOCK_STREAM, socket
from time import monotonic

from polydev.agent.errors import CheckFailed

CHUNK_BYTES = 65536

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class ByteStream(Protocol):
        """The parts of a connection that a protocol needs; `expected` names the bytes in errors."""

        name: str

        def send(self, data: bytes) -> None: ...
        def read_exactly(self, count: int, expected: str) -> bytes: ...


class Stream:
    """A TCP connection (address and port) or a Unix one (path) for one check."""

    def __init__(self, address: tuple[str, int] | str, timeout_seconds: float) -> None:
        self.name = address if isinstance(address, str) else f"{address[0]}:{address[1]}"
        self._timeout_seconds = timeout_seconds
        self._ends = monotonic() + timeout_seconds
        self._unread = b""
        self._socket = socket(AF_UNIX if isinstance(address, str) else AF_INET, SOCK_STREAM)
        try:
            self._limit_wait()
            self._socket.connect(address)
        except OSError as error:
            self._socket.close()
            raise CheckFailed(self._words(error, "an accepted connection")) from error

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def wait_until_closed(self, timeout_seconds: float) -> None:
        """Wait until the other side closes the connection, but no longer than this."""
        self._ends = monotonic() + timeout_seconds
        try:
            self._limit_wait()
            self._socket.recv(1)
        except OSError:
            pass

    def send(self, data: bytes) -> None:
        try:
            self._limit_wait()
            self._socket.sendall(data)
        except OSError as error:
            raise CheckFailed(self._words(error, "room for a request")) from error

    def read_exactly(self, count: int, expected: str) -> bytes:
        while len(self._unread) < count:
            self._receive(expected)
        return self._take(count)

    def read_through(self, marker: bytes, limit_bytes: int, expected: str) -> bytes:
        """Read up to and including the marker, which must come within the limit."""
        while (found := self._unread.find(marker)) < 0:
            if len(self._unread) > limit_bytes:
                raise CheckFailed(f"{self.name} sent something else than {expected}")
            self._receive(expected)
        return self._take(found + len(marker))

    def _take(self, count: int) -> bytes:
        taken, self._unread = self._unread[:count], self._unread[count:]
        return taken

    def _receive(self, expected: str) -> None:
        try:
            self._limit_wait()
            data = self._socket.recv(CHUNK_BYTES)
        except OSError as error:
            raise CheckFailed(self._words(error, expected)) from error
        if not data:
            raise CheckFailed(f"{self.name} closed the connection before {expected}")
        self._unread += data

    def _limit_wait(self) -> None:
        left = self._ends - monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)

    def _words(self, error: OSError, expected: str) -> str:
        if isinstance(error, TimeoutError):
            return f"{self.name} did not give {expected} within {self._timeout_seconds:g} s"
        if isinstance(error, ConnectionRefusedError):
            return f"connection refused on {self.name}"
        if isinstance(error, FileNotFoundError):
            return f"there is no {self.name}"
        return f"{self.name}: {(error.strerror or type(error).__name__).lower()}"

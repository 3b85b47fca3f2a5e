"""Screens without a VM: a process that replays a VNC server's data, and a client that reads it.

python -m tests.bench.rfb FD...     listening sockets, as descriptors
"""

from __future__ import annotations

import itertools
import os
import random
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

GREETING = b"RFB 003.008\n"
REQUEST_BYTES = 10
ONE_UPDATE = bytes([3]) + bytes(REQUEST_BYTES - 1)  # FramebufferUpdateRequest
ALL_UPDATES = bytes([150]) + bytes(REQUEST_BYTES - 1)  # EnableContinuousUpdates

# Sizes of Tight's updates: a caret or a typed word, a scrolled text or a window, a whole page.
SHARES = (0.6, 0.3, 0.1)
SIZES = ((50, 600), (2_000, 20_000), (100_000, 600_000))
MOST_BYTES = SIZES[-1][1]


def update_sizes(count: int) -> list[int]:
    """Bytes of each update of the recording, always the same."""
    chance = random.Random("a session on a browser")
    ranges = chance.choices(SIZES, SHARES, k=count)
    return [chance.randint(*each) for each in ranges]


RECORDING = update_sizes(20_000)


def serve(listening: socket.socket) -> None:
    while True:
        viewer, _ = listening.accept()
        threading.Thread(target=replay, args=(viewer,), daemon=True).start()


def replay(viewer: socket.socket) -> None:
    """Send what the viewer requests until it closes."""
    viewer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    pixels = memoryview(os.urandom(MOST_BYTES))
    sizes = itertools.cycle(RECORDING)
    try:
        viewer.sendall(GREETING)
        while len(asked := viewer.recv(REQUEST_BYTES, socket.MSG_WAITALL)) == REQUEST_BYTES:
            for size in RECORDING if asked == ALL_UPDATES else [next(sizes)]:
                viewer.sendall(pixels[:size])
    except ConnectionError:
        pass
    finally:
        viewer.close()


@dataclass(frozen=True)
class Relayed:
    """A screen behind a WebSocket: its port, its path and what the upgrade needs besides."""

    port: int
    path: str
    headers: Mapping[str, str]


class Direct:
    """A client of the VM itself."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._room = memoryview(bytearray(1 << 20))

    def ask(self, request: bytes) -> None:
        self.socket.sendall(request)

    def skip(self, count: int) -> None:
        """Read and drop so many bytes of RFB."""
        while count:
            taken = self.socket.recv_into(self._room[: min(count, len(self._room))])
            assert taken, "the connection was closed"
            count -= taken

    def close(self) -> None:
        self.socket.close()


class Viewer(Direct):
    """A client behind a relay. It reads only the headers of frames, to use little CPU."""

    def __init__(self, relayed: Relayed) -> None:
        super().__init__(("127.0.0.1", relayed.port))
        self._left = 0
        lines = [f"GET {relayed.path} HTTP/1.1", "Host: localhost", "Upgrade: websocket"]
        lines += ["Connection: Upgrade", "Sec-WebSocket-Version: 13"]
        lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol: binary"]
        lines += [f"{name}: {value}" for name, value in relayed.headers.items()]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += self._exactly(1)
        assert answer.startswith(b"HTTP/1.1 101 "), answer

    def ask(self, request: bytes) -> None:
        self.socket.sendall(bytes([0x82, 0x80 | len(request), 0, 0, 0, 0]) + request)

    def skip(self, count: int) -> None:
        while count:
            if not self._left:
                self._left = self._next_message()
            part = min(count, self._left)
            super().skip(part)
            self._left -= part
            count -= part

    def answer_ping(self) -> None:
        assert self._exactly(2) == b"\x89\x00"
        self.socket.sendall(b"\x8a\x80\x00\x00\x00\x00")

    def _next_message(self) -> int:
        first, length = self._exactly(2)
        assert first == 0x82, f"a frame of kind {first:#x}"
        if length < 126:
            return length
        return int.from_bytes(self._exactly(2 if length == 126 else 8), "big")

    def _exactly(self, count: int) -> bytes:
        taken = self.socket.recv(count, socket.MSG_WAITALL)
        assert len(taken) == count, "the connection was closed"
        return taken


def listening_sockets() -> Iterator[socket.socket]:
    for number in sys.argv[1:]:
        yield socket.socket(fileno=int(number))


if __name__ == "__main__":
    for each in listening_sockets():
        threading.Thread(target=serve, args=(each,)).start()

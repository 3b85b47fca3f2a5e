"""A WebSocket client for the noVNC check: it can upgrade, read, and write small frames."""

from __future__ import annotations

from polydev.agent.errors import CheckFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from polydev.agent.outgoing_connection import Stream

# The example of RFC 6455 for a key and its answer. A fresh key would need SHA-1 and prove no more:
# it protects from caching proxies, and there is none in the guest.
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
ANSWER = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

MAX_FRAME_BYTES = 1 << 20
MAX_SENT_BYTES = 125
OP_CONTINUATION, OP_BINARY, OP_CLOSE = 0x0, 0x2, 0x8
CONTROL_BIT = 0x8
FINAL_BIT, MASK_BIT = 0x80, 0x80
NO_MASK = bytes(4)  # clients must mask; a mask of zeros does not change the payload


def upgrade_request(path: str, host: str) -> bytes:
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    ).encode() + b"Sec-WebSocket-Key: %b\r\n\r\n" % KEY


def client_frame(opcode: int, payload: bytes) -> bytes:
    """Return a final frame with at most 125 bytes."""
    assert len(payload) <= MAX_SENT_BYTES
    return bytes([FINAL_BIT | opcode, MASK_BIT | len(payload)]) + NO_MASK + payload


def close_words(payload: bytes) -> str:
    """Return code and reason of a close frame as text."""
    code = str(int.from_bytes(payload[:2], "big")) if len(payload) >= 2 else "no code"
    return f"{code} {payload[2:].decode('utf-8', 'replace')}".rstrip()


class WebSocketStream:
    """The bytes in the binary frames of an upgraded connection."""

    def __init__(self, stream: Stream, path: str) -> None:
        self.name = f"ws://{stream.name}{path}"
        self._stream = stream
        self._unread = b""
        stream.send(upgrade_request(path, stream.name))
        head = stream.read_through(b"\r\n\r\n", 8192, "an answer to a WebSocket upgrade")
        status = head.split(b"\r\n", 1)[0].decode("latin-1")
        if status.split(" ")[1:2] != ["101"] or ANSWER not in head:
            raise CheckFailed(f"{self.name} answers an upgrade with {status!r}")

    def send(self, data: bytes) -> None:
        self._stream.send(client_frame(OP_BINARY, data))

    def close(self) -> None:
        """Send a close frame, so that the server does not log a broken connection."""
        self._stream.send(client_frame(OP_CLOSE, (1000).to_bytes(2, "big")))

    def read_exactly(self, count: int, expected: str) -> bytes:
        while len(self._unread) < count:
            opcode, payload = self._next_frame(expected)
            if opcode == OP_CLOSE:
                raise CheckFailed(
                    f"{self.name} closed with {close_words(payload)!r} before {expected}"
                )
            if opcode in (OP_BINARY, OP_CONTINUATION):
                self._unread += payload
            elif not opcode & CONTROL_BIT:
                raise CheckFailed(f"{self.name} sent a text frame before {expected}")
        taken, self._unread = self._unread[:count], self._unread[count:]
        return taken

    def _next_frame(self, expected: str) -> tuple[int, bytes]:
        first, length = self._stream.read_exactly(2, expected)
        if length & MASK_BIT:
            raise CheckFailed(f"{self.name} sent a masked frame")
        if length > MAX_SENT_BYTES:
            width = 2 if length == MAX_SENT_BYTES + 1 else 8
            length = int.from_bytes(self._stream.read_exactly(width, expected), "big")
        if length > MAX_FRAME_BYTES:
            raise CheckFailed(f"{self.name} sent a frame of {length} bytes")
        return first & 0x0F, self._stream.read_exactly(length, expected)

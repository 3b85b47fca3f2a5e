"""WebSocket frames as bytes, without a socket: build those to a viewer, read those from it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from websockets.frames import Frame, Opcode
from websockets.server import ServerProtocol

from polydev.controller.relay.close_reasons import (
    BY_VIEWER,
    MOST_REASON_BYTES,
    NOT_BINARY,
    CloseReason,
)

FINAL_BINARY = 0x80 | Opcode.BINARY
MOST_BYTES_IN_ONE = 125
MOST_BYTES_IN_TWO = 0xFFFF
PING = Frame(Opcode.PING, b"").serialize(mask=False)


def binary_header(length: int) -> bytes:
    """Return the header of a binary message of `length` bytes; a server's frames have no mask."""
    if length <= MOST_BYTES_IN_ONE:
        return bytes((FINAL_BINARY, length))
    if length <= MOST_BYTES_IN_TWO:
        return struct.pack(">BBH", FINAL_BINARY, 126, length)
    return struct.pack(">BBQ", FINAL_BINARY, 127, length)


def close_frame(closing: CloseReason) -> bytes:
    payload = struct.pack(">H", closing.code) + shortened(closing.reason)
    return Frame(Opcode.CLOSE, payload).serialize(mask=False)


def shortened(reason: str) -> bytes:
    """Return as much of the text as fits into a close frame, in whole characters."""
    return reason.encode()[:MOST_REASON_BYTES].decode(errors="ignore").encode()


@dataclass(frozen=True)
class Received:
    """The contents of some bytes of a viewer.

    frames      number of frames of all kinds
    data        their payload for the VM
    pong        the answer to their last ping; earlier ones need none
    closing     why the connection ends: the viewer closes it, or broke the protocol
    """

    frames: int
    data: bytes
    pong: bytes | None = None
    closing: CloseReason | None = None


class FrameReader:
    """Reads a viewer's frames. Fragments are passed on as they come: RFB is a stream."""

    def __init__(self, protocol: ServerProtocol) -> None:
        self._protocol = protocol

    def read(self, data: bytes) -> Received:
        """Return what `data` completes, together with what came before; stop at a closing."""
        self._protocol.receive_data(data)
        parts: list[bytes] = []
        pong = None
        closing = None
        count = 0
        for event in self._protocol.events_received():
            assert isinstance(event, Frame)
            count += 1
            if event.opcode in (Opcode.BINARY, Opcode.CONT):
                parts.append(bytes(event.data))
            elif event.opcode is Opcode.PING:
                pong = Frame(Opcode.PONG, event.data).serialize(mask=False)
            elif event.opcode is Opcode.CLOSE:
                closing = BY_VIEWER
            elif event.opcode is Opcode.TEXT:
                closing = NOT_BINARY
                break
        self._protocol.data_to_send()  # its answers are dropped: the relay sends its own
        return Received(count, b"".join(parts), pong, closing or self._broken())

    def _broken(self) -> CloseReason | None:
        """Return how the viewer broke the protocol; None if it did not."""
        sent = self._protocol.close_sent
        if self._protocol.parser_exc is None or sent is None:
            return None
        return CloseReason(sent.code, sent.reason, "protocol")

"""A viewer that keeps the pixels of a VM's screen as the VNC server sends them, unpacked.

It needs the standard library only, and so runs on a host too.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

GREETING = b"RFB 003.008\n"
NO_PASSWORD, RAW = 1, 0
UPDATE, COLOURS, BELL, CUT_TEXT = range(4)
BLOCK_PIXELS = 32


class Screen:
    """One connection. `receive` returns the next bytes that came, and none once it is closed."""

    def __init__(self, receive: Callable[[], bytes], send: Callable[[bytes], object]) -> None:
        self._receive = receive
        self._send = send
        self._came = bytearray()
        self.width = self.height = self._depth = 0
        self.pixels = bytearray()

    def greet(self) -> None:
        """Wait for the server's first words."""
        greeting = self._take(len(GREETING))
        assert greeting == GREETING, greeting

    def open(self) -> None:
        """Agree with the server that has greeted."""
        self._send(GREETING)
        (count,) = self._take(1)
        kinds = self._take(count)
        assert NO_PASSWORD in kinds, kinds
        self._send(bytes([NO_PASSWORD]))
        refused = self._take(4)
        assert not any(refused), refused
        self._send(b"\x01")  # others may look too
        self.width, self.height, bits = struct.unpack("!HHB15x", self._take(20))
        self._depth = bits // 8
        self._take(*struct.unpack("!I", self._take(4)))
        self._send(struct.pack("!BxHi", 2, 1, RAW))
        self.pixels = bytearray(self.width * self.height * self._depth)

    def ask(self, *, is_all: bool) -> None:
        """Ask for all of the screen at once, or for what changes from now on."""
        self._send(struct.pack("!BBHHHH", 3, not is_all, 0, 0, self.width, self.height))

    def update(self) -> None:
        """Wait for the next change, and take it over."""
        while True:
            (kind,) = self._take(1)
            if kind == UPDATE:
                for _ in range(*struct.unpack("!xH", self._take(3))):
                    self._take_rectangle()
                return
            if kind == CUT_TEXT:
                self._take(*struct.unpack("!3xI", self._take(7)))
            else:
                assert kind == BELL, kind

    def _take_rectangle(self) -> None:
        left, top, width, height, encoding = struct.unpack("!HHHHi", self._take(12))
        assert encoding == RAW, encoding
        length = width * self._depth
        rows = self._take(length * height)
        for row in range(height):
            at = ((top + row) * self.width + left) * self._depth
            self.pixels[at : at + length] = rows[row * length : (row + 1) * length]

    def _take(self, count: int) -> bytes:
        while len(self._came) < count:
            came = self._receive()
            assert came, "the screen was closed"
            self._came += came
        taken = bytes(self._came[:count])
        del self._came[:count]
        return taken


def likeness(pixels: bytes | bytearray, other: bytes) -> float:
    """The part of two screens, in short runs of pixels, that is the same in both."""
    if len(pixels) != len(other):
        return 0.0
    run = BLOCK_PIXELS * 4
    one, two = memoryview(pixels), memoryview(other)
    starts = range(0, len(pixels), run)
    return sum(one[at : at + run] == two[at : at + run] for at in starts) / len(starts)

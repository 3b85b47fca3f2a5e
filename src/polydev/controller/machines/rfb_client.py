"""A small RFB client (RFC 6143): whether a VM's screen answers, and one frame of it.

The VM is not trusted, so the size of its screen and of its messages is limited. The client asks for
raw pixels only: nothing has to be decompressed, and the host needs no image library.
"""

from __future__ import annotations

import asyncio
import struct
from contextlib import suppress
from dataclasses import dataclass, field

from polydev.errors import VmError
from polydev.host_layout import VNC_PORT
from polydev.vm.cancel_on_timeout import within

VERSION = b"RFB 003.008\n"
NO_AUTHENTICATION = 1
RAW = 0
PIXEL_BYTES = 4
MOST_PIXELS = 4096 * 2304
MOST_TEXT_BYTES = 1024 * 1024
MOST_MESSAGES = 1000
READ_BYTES = 256 * 1024
# Shared: other viewers stay connected.
CLIENT_INIT = b"\x01"
# 32 bits a pixel, of which 24 count; little-endian, so that red comes first.
PIXEL_FORMAT = struct.pack(">BxxxBBBBHHHBBBxxx", 0, 32, 24, 0, 1, 255, 255, 255, 0, 8, 16)
ONLY_RAW = struct.pack(">BxHi", 2, 1, RAW)
# RFC 6143, 7.1.1: "RFB 003.008\n".
GREETING_START, GREETING_BYTES = b"RFB ", 12
RETRY_SECONDS = 0.1


async def screen_answers(address: str, seconds: float) -> None:
    """Wait until the screen of the VM at that address sends its greeting. Raises VmError.

    The first greeting takes an emulated clone longer than all later ones.
    """
    await within(seconds, _until_greeted(address), "the greeting of the VM's screen")


async def _until_greeted(address: str) -> None:
    while True:
        with suppress(OSError, EOFError):
            if (await _greeting(address)).startswith(GREETING_START):
                return
            raise VmError("the VM's screen does not speak RFB")
        await asyncio.sleep(RETRY_SECONDS)


async def _greeting(address: str) -> bytes:
    reader, writer = await asyncio.open_connection(address, VNC_PORT)
    try:
        return await reader.readexactly(GREETING_BYTES)
    finally:
        writer.close()


@dataclass
class Frame:
    """Pixels of four bytes each: red, green, blue, unused; `missing` pixels have not come yet."""

    width: int
    height: int
    pixels: bytearray = field(repr=False)
    missing: int

    @staticmethod
    def empty(width: int, height: int) -> Frame:
        """Return a frame of missing pixels. Raises VmError for none, or too many."""
        count = width * height
        if not 0 < count <= MOST_PIXELS:
            raise VmError(f"the VM's screen has {width}x{height} pixels: none, or too many")
        return Frame(width, height, bytearray(count * PIXEL_BYTES), count)


async def read_frame(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Frame:
    """Return the picture of a VNC server. Raises VmError, OSError and EOFError."""
    await _greet(reader, writer)
    writer.write(CLIENT_INIT)
    width, height, name_bytes = struct.unpack(">HH16xI", await reader.readexactly(24))
    await _skip(reader, name_bytes)
    frame = Frame.empty(width, height)
    wanted = struct.pack(">BBHHHH", 3, 0, 0, 0, width, height)
    writer.write(PIXEL_FORMAT + ONLY_RAW + wanted)
    for _ in range(MOST_MESSAGES):
        await _read_message(reader, frame)
        if frame.missing <= 0:
            return frame
    raise VmError(f"the VM's screen sent {MOST_MESSAGES} messages and no complete picture")


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if (await reader.readexactly(len(VERSION))) < VERSION:
        raise VmError("the VM's screen does not speak RFB 3.8")
    writer.write(VERSION)
    (count,) = await reader.readexactly(1)
    if NO_AUTHENTICATION not in await reader.readexactly(count):
        raise VmError("the VM's screen asks for a password")
    writer.write(bytes([NO_AUTHENTICATION]))
    if any(await reader.readexactly(4)):
        raise VmError("the VM's screen refused the connection")


async def _read_message(reader: asyncio.StreamReader, frame: Frame) -> None:
    (kind,) = await reader.readexactly(1)
    if kind == 0:  # FramebufferUpdate
        (rectangles,) = struct.unpack(">xH", await reader.readexactly(3))
        for _ in range(rectangles):
            await _read_rectangle(reader, frame)
    elif kind == 1:  # SetColourMapEntries
        (colours,) = struct.unpack(">xxxH", await reader.readexactly(5))
        await _skip(reader, colours * 6)
    elif kind == 3:  # ServerCutText
        (length,) = struct.unpack(">xxxI", await reader.readexactly(7))
        await _skip(reader, length)
    elif kind != 2:  # Bell
        raise VmError(f"the VM's screen sent a message of the unknown type {kind}")


async def _read_rectangle(reader: asyncio.StreamReader, frame: Frame) -> None:
    x, y, width, height, encoding = struct.unpack(">HHHHi", await reader.readexactly(12))
    if encoding != RAW or x + width > frame.width or y + height > frame.height:
        raise VmError("the VM's screen sent an area or encoding that was not requested")
    if not width * height:  # or the VM could send any number of them
        raise VmError("the VM's screen sent an area without pixels")
    frame.missing -= width * height
    line = width * PIXEL_BYTES
    at_once = max(1, READ_BYTES // max(line, 1))
    for first in range(0, height if line else 0, at_once):
        rows = min(at_once, height - first)
        data = await reader.readexactly(rows * line)
        for row in range(rows):
            start = ((y + first + row) * frame.width + x) * PIXEL_BYTES
            frame.pixels[start : start + line] = data[row * line : (row + 1) * line]


async def _skip(reader: asyncio.StreamReader, length: int) -> None:
    if length > MOST_TEXT_BYTES:
        raise VmError("the VM's screen sent a text that is too long")
    await reader.readexactly(length)

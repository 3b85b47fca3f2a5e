"""What uvicorn's connections ask of their transports, which differ where these speak TLS."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios


def is_tls(transport: asyncio.Transport) -> bool:
    return transport.get_extra_info("sslcontext") is not None


def watch_every_byte(transport: asyncio.Transport) -> None:
    """Have `pause_writing` called whenever anything has not left.

    A transport with TLS compares otherwise: with a limit of 0 it would always be full.
    """
    transport.set_write_buffer_limits(high=1 if is_tls(transport) else 0)


def unread_bytes(transport: asyncio.Transport) -> int:
    """How many bytes have arrived that were not read yet; under TLS, with its own."""
    number = transport.get_extra_info("socket").fileno()
    found: int = struct.unpack("i", fcntl.ioctl(number, termios.FIONREAD, bytes(4)))[0]
    return found


def end_writing(transport: asyncio.Transport) -> None:
    """Say that nothing more comes, and read on: TLS knows an end of both ways only, and reads on
    by itself until its peer says the same."""
    if transport.can_write_eof():
        transport.write_eof()
    else:
        transport.close()

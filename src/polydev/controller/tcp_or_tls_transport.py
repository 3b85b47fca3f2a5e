"""Operations on transports that differ between plain TCP and TLS."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios


def is_tls(transport: asyncio.Transport) -> bool:
    return transport.get_extra_info("sslcontext") is not None


def watch_every_byte(transport: asyncio.Transport) -> None:
    """Have `pause_writing` called whenever unsent data is left.

    TLS transports compare in another way: with a limit of 0 they would always be full.
    """
    transport.set_write_buffer_limits(high=1 if is_tls(transport) else 0)


def unread_bytes(transport: asyncio.Transport) -> int:
    """Return the number of bytes that have arrived and were not read; with TLS, encrypted ones."""
    number = transport.get_extra_info("socket").fileno()
    found: int = struct.unpack("i", fcntl.ioctl(number, termios.FIONREAD, bytes(4)))[0]
    return found


def end_writing(transport: asyncio.Transport) -> None:
    """Close the writing side and keep reading. TLS can only close both, but reads until its peer
    closes."""
    if transport.can_write_eof():
        transport.write_eof()
    else:
        transport.close()

"""Carry bytes between a viewer's TLS connection and a plain socket for the relay.

viewer --TLS--> transport of the event loop --TlsProxy--> pair of sockets --> relay, and back

Neither side is read faster than the other one takes it. To the relay the socket looks like a
connection without TLS: it can close one half of it, and reads the end when the viewer is gone.
"""

from __future__ import annotations

import asyncio
from typing import cast


class TlsProxy(asyncio.Protocol):
    """The protocol at the other end of the relay's socket pair."""

    def __init__(self, viewer: asyncio.Transport) -> None:
        self._viewer = viewer
        self._pair: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._pair = cast("asyncio.Transport", transport)  # uvloop has its own classes

    # From the relay to the viewer

    def data_received(self, data: bytes) -> None:
        self._viewer.write(data)

    def eof_received(self) -> bool:
        """TLS cannot close one half: send what is left, then close the connection."""
        self._viewer.close()
        return True  # until the viewer is gone too

    def pause_reading(self) -> None:
        if not self._pair.is_closing():
            self._pair.pause_reading()

    def resume_reading(self) -> None:
        if not self._pair.is_closing():
            self._pair.resume_reading()

    # From the viewer to the relay

    def write(self, data: bytes) -> None:
        if not self._pair.is_closing():
            self._pair.write(data)

    def pause_writing(self) -> None:
        if not self._viewer.is_closing():
            self._viewer.pause_reading()

    def resume_writing(self) -> None:
        if not self._viewer.is_closing():
            self._viewer.resume_reading()

    def close(self) -> None:
        """The viewer is gone: the relay reads what is left, then the end."""
        self._pair.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The relay has closed its socket."""
        if not self._viewer.is_closing():
            self._viewer.abort()

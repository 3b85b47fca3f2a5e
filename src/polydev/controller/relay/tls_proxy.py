"""Bytes between a viewer's connection under TLS and a socket, which the relay has the other end of.

viewer --TLS--> transport of the event loop --TlsProxy--> pair of sockets --> relay, and back

Neither side is read faster than the other one takes it. The relay cannot tell the socket from one
without TLS: it ends half of it to say that all was said, and reads its end when the viewer is gone.
"""

from __future__ import annotations

import asyncio
from typing import cast


class TlsProxy(asyncio.Protocol):
    """The end of the pair that the relay does not have."""

    def __init__(self, viewer: asyncio.Transport) -> None:
        self._viewer = viewer
        self._pair: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._pair = cast("asyncio.Transport", transport)  # uvloop has classes of its own

    # From the relay to the viewer

    def data_received(self, data: bytes) -> None:
        self._viewer.write(data)

    def eof_received(self) -> bool:
        """TLS has no half of an end: what was said leaves, and then a word that this is all."""
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
        """The viewer is gone; the relay reads what it still said, and then its end."""
        self._pair.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The relay has let go."""
        if not self._viewer.is_closing():
            self._viewer.abort()

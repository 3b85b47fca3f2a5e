"""A network connection between a browser and a service that a test cuts and restores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.ports import reserved_port
from tests.relays import HOST
from tests.xscreen import first_of


class Wire:
    """A connection from browser to service that a test can cut or direct to another service."""

    def __init__(self, port: int, to_port: int) -> None:
        self.port = port
        self.to_port = to_port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._carry, HOST, self.port)

    def cut(self) -> None:
        """Stop listening, and break all open connections."""
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    def silence(self) -> None:
        """Keep all connections open, and carry nothing more."""
        self._flows.clear()

    def flow(self) -> None:
        self._flows.set()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with suppress(ConnectionError):
            to_reader, to_writer = await asyncio.open_connection(HOST, self.to_port)
            self._writers.add(to_writer)
            try:
                await first_of(self._pumped(reader, to_writer), self._pumped(to_reader, writer))
            finally:
                self._writers.discard(to_writer)
                to_writer.close()
        self._writers.discard(writer)
        writer.close()

    async def _pumped(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await self._flows.wait()
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def wires(to_port: int) -> AsyncIterator[Wire]:
    with reserved_port() as port:
        wire = Wire(port, to_port)
        await wire.mend()
        try:
            yield wire
        finally:
            wire.cut()

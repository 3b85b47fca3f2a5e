"""A local port for VNC programs that leads to a session's screen.

Each connection to the port becomes a WebSocket to the controller, which carries RFB. The controller
counts each as use of the session.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from contextlib import suppress

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.typing import Subprotocol

from polydev.client.controller_api import ControllerApi
from polydev.http_client import is_far, tls_context

LOOK_SECONDS = 10.0
BLOCK_BYTES = 64 * 1024
HOST = "127.0.0.1"

Say = Callable[[str], None]
# At lower levels the library logs all headers, including the token.
QUIET = logging.getLogger(f"{__name__}.quiet")
QUIET.setLevel(logging.WARNING)


class VncProxy:
    """Serves a port for VNC programs; `say` gets a line when one connects or disconnects."""

    def __init__(self, api: ControllerApi, session_id: str, say: Say) -> None:
        self._api = api
        self._path = f"/api/auth/session/{session_id}"
        self._say = say

    async def serve(self, port: int, on_port: Callable[[int], None]) -> str:
        """Serve until the session has ended; return its last state. Port 0 takes a free one.

        Raises the errors of ControllerApi, and OSError if the port is not free.
        """
        server = await asyncio.start_server(self._carry, HOST, port)
        try:
            on_port(server.sockets[0].getsockname()[1])
            return await self._live()
        finally:
            server.close()  # without waiting for viewers that stay

    async def _live(self) -> str:
        while True:
            session = await asyncio.to_thread(self._api.get, self._path)
            if session["endedAt"]:
                return str(session["status"])
            await asyncio.sleep(LOOK_SECONDS)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._say("a viewer connected")
        try:
            async with self._websocket() as screen:
                why = await carry_both_ways(screen, reader, writer)
        except (WebSocketException, OSError) as error:
            why = str(error)
        finally:
            writer.close()
        self._say(f"a viewer disconnected: {why}")

    def _websocket(self) -> connect:
        return connect(
            self._api.url.replace("http", "ws", 1) + f"{self._path}/novnc/websock",
            additional_headers=self._api.authorization,
            subprotocols=[Subprotocol("binary")],
            compression=None,
            proxy=True if is_far(self._api.url) else None,
            ssl=tls_of(self._api),
            max_size=None,
            logger=QUIET,
        )


def tls_of(api: ControllerApi) -> ssl.SSLContext | None:
    """Return the TLS settings of the API's other requests; None without TLS."""
    if not api.url.startswith("https://"):
        return None
    if not api.through_ssh:
        return tls_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def carry_both_ways(
    screen: ClientConnection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> str:
    """Forward bytes in both directions until one side ends; return the reason."""

    async def upwards() -> str:
        while data := await reader.read(BLOCK_BYTES):
            await screen.send(data)
        return "it closed the connection"

    async def downwards() -> str:
        with suppress(ConnectionClosed):
            while True:
                message = await screen.recv()
                writer.write(message if isinstance(message, bytes) else message.encode())
                await writer.drain()
        return f"{screen.close_code} {screen.close_reason}"

    tasks = [asyncio.create_task(upwards()), asyncio.create_task(downwards())]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
        with suppress(asyncio.CancelledError, ConnectionClosed, OSError):
            await task
    try:
        return done.pop().result()
    except ConnectionClosed:
        return f"{screen.close_code} {screen.close_reason}"

"""A VNC viewer for a WebSocket: a real RFB client at the other end of a bridge to TCP."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import asyncvnc
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol


def viewer_url(base: str, session_id: str) -> str:
    """Return the URL of a session's screen; `base` is the controller's http:// address."""
    return f"{base.replace('http', 'ws', 1)}/api/auth/session/{session_id}/novnc/websock"


@asynccontextmanager
async def rfb_viewer(
    url: str, token: str, tls: ssl.SSLContext | None = None
) -> AsyncIterator[asyncvnc.Client]:
    """A VNC client connected through the WebSocket at `url`."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(open_websocket(url, token, tls))
        bridge = await asyncio.start_server(
            lambda reader, writer: _carry(client, reader, writer), "127.0.0.1", 0
        )
        stack.push_async_callback(bridge.wait_closed)
        stack.callback(bridge.close)
        port = bridge.sockets[0].getsockname()[1]
        yield await stack.enter_async_context(asyncvnc.connect("127.0.0.1", port))


def open_websocket(url: str, token: str, tls: ssl.SSLContext | None = None) -> connect:
    return connect(
        url,
        additional_headers={"Authorization": f"Bearer {token}"},
        subprotocols=[Subprotocol("binary")],
        compression=None,
        proxy=None,
        ssl=tls,
        max_size=None,
        open_timeout=60,
        ping_timeout=None,  # a busy machine takes its time, and tests give up by themselves
    )


async def _carry(
    client: ClientConnection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    async def upwards() -> None:
        while data := await reader.read(65536):
            await client.send(data)

    async def downwards() -> None:
        async for message in client:
            assert isinstance(message, bytes)
            writer.write(message)
            await writer.drain()

    tasks = [asyncio.create_task(upwards()), asyncio.create_task(downwards())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError, ConnectionClosed, OSError):
                await task
        writer.close()

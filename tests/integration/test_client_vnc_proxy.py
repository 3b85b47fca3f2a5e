"""The port for VNC programs, with real sockets: bytes both ways, and the end."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus

import pytest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from polydev.client import vnc_proxy
from polydev.client.controller_api import ControllerApi, ControllerRefused
from polydev.client.vnc_proxy import HOST, VncProxy

SESSION = "5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01"
GREETING = b"RFB 003.008\n"


class FakeController:
    """Answers for one session, and has its screen on a WebSocket of the same port."""

    def __init__(
        self, on_viewer: Callable[[ServerConnection], Awaitable[None]], status: int = 200
    ) -> None:
        self.on_viewer = on_viewer
        self.status = status
        self.ended = False
        self.seen: list[ServerConnection] = []
        self.said: list[str] = []

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path.endswith("/websock"):
            return None
        ended = "2026-11-21T10:15:00Z" if self.ended else None
        body = {"endedAt": ended, "status": "terminated", "detail": "none"}
        return connection.respond(HTTPStatus(self.status), json.dumps(body))

    async def _screen(self, connection: ServerConnection) -> None:
        self.seen.append(connection)
        await self.on_viewer(connection)

    def serving(self) -> AbstractAsyncContextManager[Server]:
        return serve(
            self._screen,
            HOST,
            0,
            subprotocols=[Subprotocol("binary")],
            max_size=None,
            process_request=self._answer,
        )

    def viewer(self, server: Server) -> VncProxy:
        port = next(iter(server.sockets)).getsockname()[1]
        api = ControllerApi(f"http://{HOST}:{port}", "pdt_secret")
        return VncProxy(api, SESSION, self.said.append)


async def greet_and_echo(connection: ServerConnection) -> None:
    await connection.send(GREETING)
    async for message in connection:
        await connection.send(message)


async def close_at_once(connection: ServerConnection) -> None:
    await connection.close(4410, "the VM is gone")


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vnc_proxy, "LOOK_SECONDS", 0.02)


async def opened(made: VncProxy) -> tuple[asyncio.Task[str], int]:
    """The viewer's port, and the task that serves it."""
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(made.serve(0, port.set_result))
    return task, await port


def test_vnc_proxy_relays_both_ways_until_session_ends() -> None:
    fake = FakeController(greet_and_echo)
    sent = bytes(range(256)) * 4096

    async def use() -> str:
        async with fake.serving() as server:
            task, port = await opened(fake.viewer(server))
            reader, writer = await asyncio.open_connection(HOST, port)
            assert await reader.readexactly(len(GREETING)) == GREETING
            writer.write(sent)
            assert await reader.readexactly(len(sent)) == sent
            writer.close()
            await writer.wait_closed()
            fake.ended = True
            return await task

    assert asyncio.run(use()) == "terminated"
    request = fake.seen[0].request
    assert request is not None
    assert request.path == f"/api/auth/session/{SESSION}/novnc/websock"
    assert request.headers["Authorization"] == "Bearer pdt_secret"
    assert fake.seen[0].subprotocol == "binary"


def test_vnc_proxy_reports_close_reason_and_logs_no_token(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("websockets.server").setLevel(logging.WARNING)  # of the fake controller
    fake = FakeController(close_at_once)

    async def use() -> None:
        async with fake.serving() as server:
            task, port = await opened(fake.viewer(server))
            reader, writer = await asyncio.open_connection(HOST, port)
            assert await reader.read() == b""
            writer.close()
            fake.ended = True
            await task

    asyncio.run(use())
    assert fake.said[-1] == "a viewer disconnected: 4410 the VM is gone"
    assert "pdt_secret" not in caplog.text


def test_vnc_proxy_ends_at_once_for_unknown_session() -> None:
    fake = FakeController(greet_and_echo, status=404)

    async def use() -> None:
        async with fake.serving() as server:
            await fake.viewer(server).serve(0, lambda _port: None)

    with pytest.raises(ControllerRefused, match="none"):
        asyncio.run(use())

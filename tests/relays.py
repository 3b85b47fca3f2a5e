"""Sessions with screens: the whole application on a real port, with VMs that a test controls."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from polydev.controller.app import create_app
from polydev.controller.app_services import Services
from polydev.controller.entities import Session
from polydev.controller.machines.hypervisor import Launch
from polydev.controller.relay.keepalive import KeepaliveTimer
from polydev.controller.relay.websocket_takeover import RelayProtocol
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.sessions import NewSession
from polydev.controller.store.vm_slots import sync_slots
from tests.certificates import Tls
from tests.driving import until
from tests.vms import IMAGE_DIGEST, RFB_GREETING, FakeHost, FakeVm, SlowVm, fake_hosts

HOST = "127.0.0.1"
PATIENCE_SECONDS = 60.0
WIDTH, HEIGHT = 320, 200
# Bytes that follow the type of each message of an RFB client that has a fixed length.
CLIENT_MESSAGES = {0: 19, 3: 9, 4: 7, 5: 5}

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class ScreenVm(SlowVm):
    """A VM whose screen is a function of the test."""

    screen: Serve

    async def serve_rfb(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.screen(reader, writer)


class ByHand(KeepaliveTimer):
    """A timer for pings that a test triggers by hand."""

    def _wait(self) -> None:
        """No timer."""

    def beat(self) -> None:
        for call in list(self._called):
            call()


@dataclass
class Screens:
    """The listening service with two users and an operator, without a driver of VMs."""

    host: FakeHost
    services: Services
    server: uvicorn.Server
    port: int
    tokens: dict[str, str]
    users: dict[str, str]
    vms: dict[str, FakeVm] = field(default_factory=dict)
    tls: Tls | None = None

    async def session(
        self, screen: Serve | None = None, *, user: str = "user", new: NewSession | None = None
    ) -> Session:
        """Make a session whose VM is ready; by default its screen greets and echoes."""
        session = await self.booting(screen, user=user, new=new)
        await self.vms[session.id].reach("services")
        await self.services.vms.ready(session.vm_id)
        return await self.services.sessions.get(session.id)

    async def waiting(self, *, user: str = "user", new: NewSession | None = None) -> Session:
        """Make a session whose VM is not started yet; `new` is the request."""
        new = new or NewSession(self.users[user], "claude", IMAGE_DIGEST)
        return (await self.services.sessions.start(new))[0]

    async def booting(
        self, screen: Serve | None = None, *, user: str = "user", new: NewSession | None = None
    ) -> Session:
        session = await self.waiting(user=user, new=new)
        vm = await self.services.vms.get(session.vm_id)
        self.host.hypervisor.next.append(ScreenVm)
        await self.host.hypervisor.start(Launch(vm.id, vm.slot, IMAGE_DIGEST, session.id))
        fake = self.host.hypervisor.vms[vm.slot]
        assert isinstance(fake, ScreenVm)
        fake.screen = screen or FakeVm.serve_rfb.__get__(fake)
        self.vms[session.id] = fake
        await self.services.vms.launched(vm.id)
        return session

    async def stop(self) -> None:
        """End the service, as at a deployment; VMs and database stay."""
        await self.services.end()
        self.server.should_exit = True

        async def is_gone() -> bool:
            try:
                _, writer = await asyncio.open_connection(HOST, self.port)
            except ConnectionRefusedError:
                return True
            except ConnectionResetError:  # it waited at a socket that was being closed
                return False
            writer.close()
            return False

        await until(is_gone, "the end of the service")

    def url(self, session_id: str) -> str:
        scheme = "wss" if self.tls else "ws"
        return f"{scheme}://{HOST}:{self.port}/api/auth/session/{session_id}/novnc/websock"

    def connect(self, session_id: str, caller: str | None = "user", **options: Any) -> connect:
        token = self.tokens[caller] if caller else None
        given: dict[str, Any] = {
            "additional_headers": {"Authorization": f"Bearer {token}"} if token else {},
            "subprotocols": [Subprotocol("binary")],
            "compression": None,
            "proxy": None,
            "max_size": None,
            "ping_interval": None,
            "open_timeout": PATIENCE_SECONDS,
            **({"ssl": self.tls.client()} if self.tls else {}),
            **options,
        }
        return connect(given.pop("uri", self.url(session_id)), **given)

    async def closing(self, session_id: str, caller: str | None = "user") -> tuple[int, str]:
        """Return the close code and reason of a refused viewer."""
        async with self.connect(session_id, caller) as viewer:
            return await closing_of(viewer)


async def closing_of(viewer: ClientConnection) -> tuple[int, str]:
    await asyncio.wait_for(viewer.wait_closed(), PATIENCE_SECONDS)
    assert viewer.close_code is not None
    return viewer.close_code, viewer.close_reason or ""


@asynccontextmanager
async def screens(
    root: Path,
    slots: Sequence[int] = (2, 3),
    *,
    packed_assets: Path | None = None,
    tls: Tls | None = None,
    port: int = 0,
    **changes: Any,
) -> AsyncIterator[Screens]:
    """`packed_assets` is the fixture of that name, where a browser looks at pages.

    `port` is one to listen on, such as that of a service that has ended; 0: any.
    """
    async with fake_hosts(root, slots, SlowVm) as host:
        settings = ControllerSettings(
            **{**host.settings_values, "session": {"per_user": 99}, **changes}
        )
        app = create_app(settings, host.hypervisor, packed_assets)
        services: Services = app.state.services
        await sync_slots(services.database, settings.slots, settings.vm_network)
        roles = {"user": "user", "other user": "user", "operator": "operator"}
        users = {name: (await services.users.add(role)).id for name, role in roles.items()}  # type: ignore[arg-type]
        tokens = {
            name: (await services.tokens.create(user, "tests"))[1] for name, user in users.items()
        }
        async with serving(app, tls, port) as (server, port):
            yield Screens(host, services, server, port, tokens, users, tls=tls)


@asynccontextmanager
async def serving(
    app: Any, tls: Tls | None = None, port: int = 0
) -> AsyncIterator[tuple[uvicorn.Server, int]]:
    """Plain uvicorn on its own port, stopped at the end of the block if not before."""
    with socket.create_server((HOST, port)) as listening:
        config = uvicorn.Config(
            app,
            ws=RelayProtocol,
            lifespan="on",
            log_config=None,
            proxy_headers=False,
            timeout_graceful_shutdown=10,
        )
        if tls:
            config.ssl_certfile, config.ssl_keyfile = tls.certificate, tls.key
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        task = asyncio.create_task(server.serve([listening]))
        try:
            yield server, listening.getsockname()[1]
        finally:
            server.should_exit = True
            await task


class RawViewer:
    """A WebSocket client that does only what a test tells it; its masks are not random."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def frame(self) -> tuple[int, bytes]:
        """Return kind and payload of the next frame."""
        first, length = await self.reader.readexactly(2)
        assert first & 0x80, "a fragment"
        if length >= 126:
            size = await self.reader.readexactly(2 if length == 126 else 8)
            length = int.from_bytes(size, "big")
        return first & 0x0F, await self.reader.readexactly(length)

    def send(self, kind: int, payload: bytes, *, final: bool = True) -> None:
        assert len(payload) < 126
        first = kind | (0x80 if final else 0)
        self.writer.write(bytes([first, 0x80 | len(payload), 0, 0, 0, 0]) + payload)


@asynccontextmanager
async def raw_viewer(
    screens: Screens, session_id: str, *headers: str, caller: str = "user", after: bytes = b""
) -> AsyncIterator[RawViewer]:
    """Connect a viewer with small buffers, so that a slow reader has an effect soon.

    `after` follows the request for the upgrade, without waiting for its answer.
    """
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    made.setblocking(False)
    await asyncio.get_running_loop().sock_connect(made, (HOST, screens.port))
    options: dict[str, Any] = {}
    if screens.tls:
        options = {"ssl": screens.tls.client(), "server_hostname": HOST}
    reader, writer = await asyncio.open_connection(sock=made, **options)
    path = screens.url(session_id).partition(str(screens.port))[2]
    lines = [f"GET {path} HTTP/1.1", "Host: localhost", "Upgrade: websocket"]
    lines += ["Connection: Upgrade", "Sec-WebSocket-Version: 13"]
    lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
    lines += [f"Authorization: Bearer {screens.tokens[caller]}", *headers]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    writer.write(after)
    try:
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        yield RawViewer(reader, writer)
    finally:
        writer.transport.abort()


async def rfb_screen(
    pixels: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """A VNC server without authentication that shows one picture: four bytes a pixel, red first."""
    writer.write(RFB_GREETING)
    await reader.readexactly(len(RFB_GREETING))
    writer.write(b"\x01\x01")  # one way of coming in: none
    await reader.readexactly(1)
    writer.write(bytes(4))
    await reader.readexactly(1)
    pixel_format = struct.pack(">BBBBHHHBBB3x", 32, 24, 0, 1, 255, 255, 255, 0, 8, 16)
    writer.write(struct.pack(">HH", WIDTH, HEIGHT) + pixel_format + struct.pack(">I", 0))
    while kind := await reader.read(1):
        if kind[0] == 2:  # SetEncodings
            _, count = struct.unpack(">BH", await reader.readexactly(3))
            await reader.readexactly(4 * count)
            continue
        await reader.readexactly(CLIENT_MESSAGES[kind[0]])
        if kind[0] == 3:  # FramebufferUpdateRequest
            writer.write(struct.pack(">BxHHHHHi", 0, 1, 0, 0, WIDTH, HEIGHT, 0) + pixels)

"""Read-only and other viewers of a real VNC server: whose keys, pointer and clipboard arrive."""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import ClientConnection

from polydev.controller.relay.close_reasons import POLICY_VIOLATION
from polydev.controller.relay.spectator_filter import EXTENDED_CLIPBOARD
from tests.driving import until
from tests.relays import HOST, PATIENCE_SECONDS, Screens, closing_of, screens
from tests.xscreen import HEIGHT, WIDTH, XScreen, x_screens

UPDATE, CUT_TEXT = 0, 3
EXTENDED_DESKTOP_SIZE = struct.pack(">i", -308)
CAPABILITIES, TEXT_WAS_COPIED = 0x01, b"\x08\0\0\x01"
WANTS_UPDATE = struct.pack(">BBHHHH", 3, 0, 0, 0, 1, 1)
KEY_A, KEY_B, KEY_Z = 0x61, 0x62, 0x7A
RAW_EVENT = re.compile(r"\((Raw(?:Key|Button)Press)\).*?detail: (\d+)", re.DOTALL)
SECRET, PUBLIC = "only the owner may paste this", "this is pasted"


class RfbClient:
    """The client's side of RFB, as bytes over a WebSocket."""

    def __init__(self, viewer: ClientConnection) -> None:
        self._viewer = viewer
        self._received = b""

    async def _read(self, count: int) -> bytes:
        while len(self._received) < count:
            message = await self._viewer.recv()
            assert isinstance(message, bytes)
            self._received += message
        data, self._received = self._received[:count], self._received[count:]
        return data

    async def send(self, *messages: bytes) -> None:
        """Send all messages in one frame."""
        await self._viewer.send(b"".join(messages))

    async def shake_hands(self, encodings: Iterable[bytes] = ()) -> None:
        assert await self._read(12) == b"RFB 003.008\n"
        await self.send(b"RFB 003.008\n")
        assert 1 in await self._read((await self._read(1))[0])
        await self.send(b"\x01\x01")
        assert await self._read(4) == bytes(4)
        width, height = struct.unpack(">HH", await self._read(4))
        assert (width, height) == (WIDTH, HEIGHT)
        await self._read(16)
        await self._read(int.from_bytes(await self._read(4), "big"))
        listed = [struct.pack(">i", 0), *encodings]
        await self.send(struct.pack(">BxH", 2, len(listed)) + b"".join(listed))

    async def updated(self) -> None:
        """Request a pixel and wait for it: the VM has then read all earlier messages."""
        await self.send(WANTS_UPDATE)
        while (kind := (await self._read(1))[0]) == CUT_TEXT:
            await self._cut_text()
        assert kind == UPDATE
        assert await self._read(3 + 12) == struct.pack(">xHHHHHi", 1, 0, 0, 1, 1, 0)
        await self._read(4)

    async def cut_text(self) -> tuple[int, bytes]:
        """Return the VM's next clipboard message and its length as sent."""
        assert (await self._read(1))[0] == CUT_TEXT
        return await self._cut_text()

    async def until_no_capabilities(self) -> bytes:
        """Return the VM's first extended clipboard message that does not announce capabilities."""
        while True:
            length, word = await self.cut_text()
            assert length < 0, word
            if not word[0] & CAPABILITIES:
                return word

    async def _cut_text(self) -> tuple[int, bytes]:
        length = struct.unpack(">3xi", await self._read(7))[0]
        return length, await self._read(abs(length))


def key(symbol: int) -> bytes:
    return struct.pack(">BBHI", 4, 1, 0, symbol) + struct.pack(">BBHI", 4, 0, 0, symbol)


def click(x: int, y: int) -> bytes:
    return struct.pack(">BBHH", 5, 1, x, y) + struct.pack(">BBHH", 5, 0, x, y)


def desktop_size(width: int, height: int) -> bytes:
    screen = struct.pack(">IHHHHI", 0, 0, 0, width, height, 0)
    return struct.pack(">BxHHBx", 251, width, height, 1) + screen


def text_message(text: str) -> bytes:
    return struct.pack(">B3xI", 6, len(text)) + text.encode()


async def spectator_url(made: Screens, session_id: str) -> str:
    """Return the URL of the screen with a read-only ticket by the session's owner."""
    async with httpx.AsyncClient(
        base_url=f"http://{HOST}:{made.port}", trust_env=False, timeout=PATIENCE_SECONDS
    ) as client:
        answer = await client.post(
            f"/api/auth/session/{session_id}/tickets",
            json={"viewOnly": True},
            headers={"Authorization": f"Bearer {made.tokens['user']}"},
        )
    assert answer.status_code == 201
    return f"ws://{HOST}:{made.port}{answer.json()['url']}"


@dataclass
class SharedScreen:
    """A screen with an owner and a spectator connected, which logs each input event."""

    screen: XScreen
    owner: RfbClient
    spectator: RfbClient
    closing: Callable[[], Awaitable[tuple[int, str]]]

    def events(self) -> list[tuple[str, str]]:
        """Return the keys and clicks that reached the VM: kind, and key or button."""
        return RAW_EVENT.findall(self.screen.said("stdbuf"))

    async def until_heard(self) -> tuple[str, str]:
        """Press a key until the VM's program, which has just started, reports it."""

        async def pressed() -> list[tuple[str, str]]:
            await self.owner.send(key(KEY_B))
            await self.owner.updated()
            return self.events()

        return (await until(pressed, "the first key"))[0]


@asynccontextmanager
async def shared_screens(
    root: Path, *, owner_knows: Iterable[bytes] = (), spectator_knows: Iterable[bytes] = ()
) -> AsyncIterator[SharedScreen]:
    """Connect both viewers, each with raw pixels and these further encodings."""
    for name in ("host", "x"):
        (root / name).mkdir()
    async with AsyncExitStack() as stack:
        made = await stack.enter_async_context(screens(root / "host"))
        screen = await stack.enter_async_context(x_screens(root / "x"))
        screen.start("stdbuf", "-oL", "xinput", "test-xi2", "--root")
        session = await made.session(screen)
        owner = await stack.enter_async_context(made.connect(session.id))
        url = await spectator_url(made, session.id)
        spectator = await stack.enter_async_context(made.connect(session.id, None, uri=url))
        at = SharedScreen(
            screen, RfbClient(owner), RfbClient(spectator), partial(closing_of, spectator)
        )
        await at.owner.shake_hands(owner_knows)
        await at.spectator.shake_hands(spectator_knows)
        yield at


def test_only_owner_keys_and_clicks_reach_the_vm(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with shared_screens(tmp_path) as at:
            first = await at.until_heard()
            await at.spectator.send(key(KEY_Z), click(10, 10), key(KEY_Z))
            await at.spectator.updated()
            await at.owner.send(key(KEY_A), click(20, 20))

            async def clicked() -> bool:
                return at.events()[-1][0] == "RawButtonPress"

            await until(clicked, "the owner's click")
            kinds = [kind for kind, which in at.events() if (kind, which) != first]
            assert kinds == ["RawKeyPress", "RawButtonPress"]

    asyncio.run(scenario())


def test_only_owner_can_resize_the_screen(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with shared_screens(tmp_path, owner_knows=[EXTENDED_DESKTOP_SIZE]) as at:
            await at.spectator.send(desktop_size(640, 480))
            await at.spectator.updated()
            assert f"{WIDTH}x{HEIGHT}" in await at.screen.run("xdpyinfo")
            await at.owner.send(desktop_size(640, 480))

            async def has_changed() -> bool:
                return "640x480" in await at.screen.run("xdpyinfo")

            await until(has_changed, "the new size")

    asyncio.run(scenario())


@pytest.mark.parametrize("encodings", [(), (EXTENDED_CLIPBOARD,)], ids=["plain", "extended"])
def test_clipboard_works_for_owner_only(tmp_path: Path, encodings: tuple[bytes, ...]) -> None:
    async def scenario() -> None:
        async with shared_screens(tmp_path, spectator_knows=encodings) as at:
            await at.spectator.send(text_message(SECRET))
            await at.spectator.updated()
            await at.owner.send(text_message(PUBLIC))
            await at.owner.updated()
            assert await at.screen.pasted() == PUBLIC
            await at.screen.copy(SECRET)
            assert await at.owner.cut_text() == (len(SECRET), SECRET.encode())
            assert await at.spectator.until_no_capabilities() == TEXT_WAS_COPIED

    asyncio.run(scenario())


def test_spectator_with_unknown_message_is_closed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with shared_screens(tmp_path) as at:
            await at.spectator.send(b"\x4d", WANTS_UPDATE)
            reason = "a read-only viewer can only look: message 77 is unknown"
            assert await at.closing() == (POLICY_VIOLATION, reason)

    asyncio.run(scenario())

"""Screenshots over the API: a real port, and VMs with screens that a test controls."""

from __future__ import annotations

import asyncio
import io
import struct
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from polydev.controller.api import vms
from polydev.controller.auth.rate_limits import RateLimiter
from polydev.controller.entities import Vm
from polydev.controller.machines import screenshots
from polydev.controller.machines.rfb_client import MOST_PIXELS, MOST_TEXT_BYTES
from polydev.controller.machines.screenshots import (
    FRESH_SECONDS,
    SCREENSHOTS_BURST,
    ReadVm,
    Screenshots,
)
from polydev.errors import SessionExpired, VmError
from tests.relays import (
    HEIGHT,
    HOST,
    PATIENCE_SECONDS,
    WIDTH,
    Screens,
    Serve,
    rfb_screen,
    screens,
)
from tests.stores import run_async
from tests.xscreen import HEIGHT as X_HEIGHT
from tests.xscreen import WIDTH as X_WIDTH
from tests.xscreen import x_screens

# Four bytes a pixel, red first: no two rows and no two columns are the same.
PIXELS = b"".join(
    bytes([x % 256, y, (x + y) % 256, 0]) for y in range(HEIGHT) for x in range(WIDTH)
)
SCREEN: Serve = partial(rfb_screen, PIXELS)


def unchanged(vm: Vm) -> ReadVm:
    """Return a reader that finds the VM unchanged."""

    async def look() -> Vm:
        return vm

    return look


async def ask(service: Screens, vm_id: str, caller: str = "user") -> httpx.Response:
    headers = {"Authorization": f"Bearer {service.tokens[caller]}"}
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as client:
        url = f"http://{HOST}:{service.port}/api/vm/{vm_id}/screenshot"
        return await client.get(url, headers=headers)


@run_async
async def test_screenshot_shows_the_screen(tmp_path: Path) -> None:
    async with screens(tmp_path) as service:
        session = await service.session(SCREEN)
        for caller in ("user", "operator"):
            answer = await ask(service, session.vm_id, caller)
            assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
            assert answer.headers["cache-control"] == "no-store"
            picture = Image.open(io.BytesIO(answer.content))
            picture.load()
            assert (picture.size, picture.mode) == ((WIDTH, HEIGHT), "RGB")
            wanted = Image.frombytes("RGBX", (WIDTH, HEIGHT), PIXELS).convert("RGB")
            assert picture.tobytes() == wanted.tobytes()
        assert (await ask(service, session.vm_id, "other user")).status_code == 403


@run_async
async def test_screenshot_of_real_screen_keeps_viewer_connected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TigerVNC, as in the golden image; its root window is coloured."""
    monkeypatch.setattr(screenshots, "TIMEOUT_SECONDS", PATIENCE_SECONDS)
    (folder := tmp_path / "x").mkdir()
    async with x_screens(folder) as screen, screens(tmp_path) as service:
        await screen.run("xsetroot", "-solid", "#16324f")
        session = await service.session(screen)
        async with service.connect(session.id) as viewer:
            assert await viewer.recv() == b"RFB 003.008\n"
            answer = await ask(service, session.vm_id)
            assert answer.status_code == 200, answer.text
            picture = Image.open(io.BytesIO(answer.content))
            assert picture.size == (X_WIDTH, X_HEIGHT)
            assert picture.getpixel((5, 5)) == (0x16, 0x32, 0x4F)
            await viewer.send(b"RFB 003.008\n")
            assert await viewer.recv() == b"\x01\x01", "the viewer is still connected"


@run_async
async def test_concurrent_requests_share_one_screenshot(tmp_path: Path) -> None:
    connections = 0

    async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await rfb_screen(PIXELS, reader, writer)

    async with screens(tmp_path) as service:
        session = await service.session(counted)
        vm = await service.services.vms.get(session.vm_id)
        taken = Screenshots(fresh_seconds=60)
        first, *others = await asyncio.gather(*(taken.take(vm, unchanged(vm)) for _ in range(20)))
        assert connections == 1
        assert others == [first] * 19
        assert await taken.take(vm, unchanged(vm)) is first
        await Screenshots(FRESH_SECONDS).take(vm, unchanged(vm))
        assert connections == 2


@run_async
async def test_cancelled_request_does_not_cancel_shared_screenshot(tmp_path: Path) -> None:
    is_open, go_on = asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_open.set()
        await go_on.wait()
        await rfb_screen(PIXELS, reader, writer)

    async with screens(tmp_path) as service:
        session = await service.session(slow)
        vm = await service.services.vms.get(session.vm_id)
        taken = Screenshots()
        leaves, stays = (asyncio.create_task(taken.take(vm, unchanged(vm))) for _ in range(2))
        await is_open.wait()
        leaves.cancel()
        go_on.set()
        assert (await stays).startswith(b"\x89PNG")
        assert leaves.cancelled()


@run_async
async def test_screenshot_is_dropped_if_vm_ended_meanwhile(tmp_path: Path) -> None:
    async with screens(tmp_path) as service:
        session = await service.session(SCREEN)
        vm = await service.services.vms.get(session.vm_id)
        over = replace(vm, state="ended")
        looks = iter((vm, over))  # it ends while its picture is taken

        async def look() -> Vm:
            return next(looks)

        with pytest.raises(SessionExpired):
            await Screenshots().take(vm, look)
        with pytest.raises(SessionExpired):
            await Screenshots().take(vm, unchanged(over))


@run_async
async def test_vm_without_screen_is_refused_with_reason(tmp_path: Path) -> None:
    async with screens(tmp_path, slots=(2, 3, 4)) as service:
        vms = service.services.vms
        booting = await service.booting(SCREEN)
        answer = await ask(service, booting.vm_id)
        assert answer.status_code == 409
        assert answer.json()["type"] == "urn:polydev:error:no-screen"

        paused = await service.session(SCREEN)
        assert await vms.pause(await vms.get(paused.vm_id))
        answer = await ask(service, paused.vm_id)
        assert (answer.status_code, answer.json()["hint"]) == (409, "open its viewer, which does")
        assert (await vms.get(paused.vm_id)).paused_at is not None, "it sleeps on"
        assert (await vms.get(paused.vm_id)).used_at is None

        over = await service.session(SCREEN)
        await service.services.sessions.apply(over.id, "terminate")
        assert (await ask(service, over.vm_id)).status_code == 410


@run_async
async def test_screenshots_are_rate_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All in one moment: on a busy machine the requests would be slower than the limit."""
    monkeypatch.setattr(vms, "RateLimiter", partial(RateLimiter, clock=lambda: 0.0))
    async with screens(tmp_path) as service:
        session = await service.session(SCREEN)
        answers = [await ask(service, session.vm_id) for _ in range(SCREENSHOTS_BURST + 2)]
        assert [each.status_code for each in answers] == [200] * SCREENSHOTS_BURST + [429] * 2
        assert answers[-1].headers["retry-after"] == "1"
        assert (await ask(service, session.vm_id, "operator")).status_code == 200


def evil(after_init: bytes = b"", size: tuple[int, int] = (WIDTH, HEIGHT), **said: Any) -> Serve:
    """A VNC server without authentication that then sends these bytes, or wrong greetings."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said.get("greeting", b"RFB 003.008\n"))
        await reader.readexactly(12)
        writer.write(said.get("security", b"\x01\x01"))
        await reader.readexactly(1)
        writer.write(said.get("result", bytes(4)))
        await reader.readexactly(1)
        writer.write(struct.pack(">HH16xI", *size, said.get("name", 0)) + after_init)
        await reader.read(1)
        await reader.read()

    return serve


def rectangle(x: int, y: int, width: int, height: int, encoding: int = 0) -> bytes:
    return struct.pack(">BxHHHHHi", 0, 1, x, y, width, height, encoding)


EVIL = {
    "too many pixels": (evil(size=(65535, 65535)), "too many"),
    "no pixels": (evil(size=(0, 100)), "none"),
    "a long name": (evil(name=2**32 - 1), "text that is too long"),
    "a long text": (evil(struct.pack(">BxxxI", 3, MOST_TEXT_BYTES + 1)), "text that is too long"),
    "a place outside": (evil(rectangle(1, 0, WIDTH, 1)), "not requested"),
    "another encoding": (evil(rectangle(0, 0, 1, 1, 7)), "not requested"),
    "an unknown message": (evil(b"\x63"), "unknown type 99"),
    "bells without end": (evil(b"\x02" * 2000), "no complete picture"),
    "an old version": (evil(greeting=b"RFB 003.003\n"), "does not speak RFB 3.8"),
    "a password": (evil(security=b"\x01\x02"), "asks for a password"),
    "no security": (evil(security=b"\x00"), "asks for a password"),
    "a refusal": (evil(result=b"\0\0\0\1"), "refused the connection"),
    "parts without pixels": (evil(rectangle(0, 0, 0, 0) * 9), "without pixels"),
}


@pytest.mark.parametrize("name", EVIL)
@run_async
async def test_invalid_rfb_server_is_an_error(name: str, tmp_path: Path) -> None:
    screen, words = EVIL[name]
    async with screens(tmp_path) as service:
        session = await service.session(screen)
        answer = await ask(service, session.vm_id)
        assert answer.status_code == 502
        assert words in answer.json()["detail"]


@run_async
async def test_closed_or_silent_screen_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with screens(tmp_path) as service:
        for screen, seconds, words in (
            (closes, PATIENCE_SECONDS, "does not answer"),
            (mute, 0.2, "did not end within 0.2 s"),
        ):
            monkeypatch.setattr(screenshots, "TIMEOUT_SECONDS", seconds)
            session = await service.session(screen)
            vm = await service.services.vms.get(session.vm_id)
            with pytest.raises(VmError, match=words):
                await Screenshots().take(vm, unchanged(vm))


def test_4k_screens_are_allowed() -> None:
    assert 3840 * 2160 <= MOST_PIXELS < 2**24

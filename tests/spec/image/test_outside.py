"""The running guest, seen from outside: what a host and its viewers use."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import Any

import asyncvnc
import numpy
import pytest
import requests
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from polydev import http_client
from polydev.vm.config import Ports

pytestmark = pytest.mark.outside

Pixels = numpy.ndarray[Any, Any]
# A guest with little CPU may not answer for twenty seconds.
ANSWER_SECONDS = 60.0
HEALTH_TIMEOUT_SECONDS = 60.0
PAINT_TIMEOUT_SECONDS = 60.0
RFB = b"RFB 003.008\n"
PAINTED_SHARE = 0.4
START_PAGE_COLOUR = (0x16, 0x32, 0x4F)


def test_agent_is_healthy(guest: Ports) -> None:
    answer = http_client.get(f"{guest.agent_url}/health", timeout_seconds=ANSWER_SECONDS)
    deadline = time.monotonic() + HEALTH_TIMEOUT_SECONDS
    # The agent's own checks of the desktop may take too long where the guest has little CPU.
    while answer.status_code == 503 and time.monotonic() < deadline:
        answer = http_client.get(f"{guest.agent_url}/health", timeout_seconds=ANSWER_SECONDS)
    body = _json(answer)
    parts = {name: part.get("detail") for name, part in body.get("components", {}).items()}
    failing = "; ".join(f"{name}: {parts.get(name)}" for name in body.get("failing", ()))
    state = f"the agent answers {answer.status_code} with status {body.get('status')!r}"
    assert (answer.status_code, body.get("status")) == (200, "ready"), f"{state}: {failing}"
    assert not failing, f"the agent reports failing components: {failing}"


def test_agent_knows_image_and_vm(guest: Ports) -> None:
    body = _json(http_client.get(f"{guest.agent_url}/health", timeout_seconds=ANSWER_SECONDS))
    digest, uptime = body.get("image_digest") or "", body.get("uptime_seconds") or 0
    assert len(digest) == 64, f"the agent names no image: its image_digest is {digest!r}"
    assert body.get("vm_id"), "the agent does not know the id of its VM"
    assert uptime > 0, f"the agent reports an uptime of {uptime} s"


def test_agent_metrics(guest: Ports) -> None:
    text = http_client.get(f"{guest.agent_url}/metrics").text
    assert "polydev_agent_up 1" in text, f"/metrics has no polydev_agent_up 1: {text[:200]!r}"


def test_vnc_speaks_rfb(guest: Ports) -> None:
    with socket.create_connection((guest.host, guest.vnc), timeout=ANSWER_SECONDS) as client:
        greeting = client.recv(12)
        assert greeting == RFB, f"the VNC server sends {greeting!r}, not {RFB!r}"


def test_novnc_page(guest: Ports) -> None:
    answer = http_client.get(f"{guest.novnc_url}/vnc.html")
    assert answer.status_code == 200, f"noVNC answers {answer.status_code} on /vnc.html"
    assert "noVNC" in answer.text, f"/vnc.html is not noVNC's page: {answer.text[:100]!r}"


def test_novnc_websocket_speaks_rfb(guest: Ports) -> None:
    url = f"ws://{guest.host}:{guest.novnc}/websockify"
    with connect(url, subprotocols=[Subprotocol("binary")], open_timeout=30, proxy=None) as client:
        greeting = client.recv(timeout=30)
        assert greeting == RFB, f"the WebSocket at {url} sends {greeting!r}, not {RFB!r}"


def test_screen_shows_the_browser(guest: Ports) -> None:
    pixels = asyncio.run(_screen(guest))
    height, width = pixels.shape[:2]
    assert (width, height) == (1280, 800), f"the screen has {width}x{height} pixels, not 1280x800"
    colours = numpy.unique(pixels.reshape(-1, 3), axis=0)
    assert len(colours) > 20, f"the screen is blank: it has {len(colours)} colours"
    page = _start_page_share(pixels)
    if page <= PAINTED_SHARE:
        raise TimeoutError(
            f"the browser does not show its start page: it covers {page:.0%} of the screen after "
            f"{PAINT_TIMEOUT_SECONDS:g} s"
        )


def _json(answer: requests.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        body = None
    where = f"{answer.url} answers {answer.status_code}"
    assert isinstance(body, dict), f"{where} without a JSON object: {answer.text[:100]!r}"
    return body


def _start_page_share(pixels: Pixels) -> float:
    near = numpy.abs(pixels.astype(int) - START_PAGE_COLOUR) <= 6
    return float(numpy.all(near, axis=2).mean())


async def _screen(guest: Ports) -> Pixels:
    """Return the screen once it shows the start page, or as it is after a minute."""
    async with asyncvnc.connect(guest.host, guest.vnc) as client:

        async def painted() -> None:
            while _start_page_share((await client.screenshot())[:, :, :3]) <= PAINTED_SHARE:
                # Answered when something on the screen changes.
                client.video.refresh()
                await client.read()

        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(painted(), PAINT_TIMEOUT_SECONDS)
    async with asyncvnc.connect(guest.host, guest.vnc) as client:
        screen: Pixels = await asyncio.wait_for(client.screenshot(), PAINT_TIMEOUT_SECONDS)
        return screen[:, :, :3]

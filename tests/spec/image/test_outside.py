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
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from polydev import http_client
from polydev.vm.config import Ports

pytestmark = pytest.mark.outside

Pixels = numpy.ndarray[Any, Any]
HEALTH_TIMEOUT_SECONDS = 30.0
PAINT_TIMEOUT_SECONDS = 60.0
RFB = b"RFB 003.008\n"
PAINTED_SHARE = 0.4
START_PAGE_COLOUR = (0x16, 0x32, 0x4F)


def test_agent_is_healthy(guest: Ports) -> None:
    answer = http_client.get(f"{guest.agent_url}/health", timeout_seconds=20)
    deadline = time.monotonic() + HEALTH_TIMEOUT_SECONDS
    # The agent's own probes of the desktop may come too late where the guest has little CPU.
    while answer.status_code == 503 and time.monotonic() < deadline:
        answer = http_client.get(f"{guest.agent_url}/health", timeout_seconds=20)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["status"] == "ready"
    assert body["failing"] == []


def test_agent_knows_image_and_vm(guest: Ports) -> None:
    body = http_client.get(f"{guest.agent_url}/health", timeout_seconds=20).json()
    assert len(body["image_digest"]) == 64
    assert body["vm_id"]
    assert body["uptime_seconds"] > 0


def test_agent_metrics(guest: Ports) -> None:
    text = http_client.get(f"{guest.agent_url}/metrics").text
    assert "polydev_agent_up 1" in text


def test_vnc_speaks_rfb(guest: Ports) -> None:
    with socket.create_connection((guest.host, guest.vnc), timeout=20) as client:
        assert client.recv(12) == RFB


def test_novnc_page(guest: Ports) -> None:
    answer = http_client.get(f"{guest.novnc_url}/vnc.html")
    assert answer.status_code == 200
    assert "noVNC" in answer.text


def test_novnc_websocket_speaks_rfb(guest: Ports) -> None:
    url = f"ws://{guest.host}:{guest.novnc}/websockify"
    with connect(url, subprotocols=[Subprotocol("binary")], open_timeout=30, proxy=None) as client:
        assert client.recv(timeout=30) == RFB


def test_screen_shows_the_browser(guest: Ports) -> None:
    pixels = asyncio.run(_screen(guest))
    height, width = pixels.shape[:2]
    assert (width, height) == (1280, 800)
    colours = numpy.unique(pixels.reshape(-1, 3), axis=0)
    assert len(colours) > 20, "the screen is blank"
    page = _start_page_share(pixels)
    if page <= PAINTED_SHARE:
        raise TimeoutError(
            f"the start page covers {page:.0%} of the screen after {PAINT_TIMEOUT_SECONDS:g} s"
        )


def _start_page_share(pixels: Pixels) -> float:
    near = numpy.abs(pixels.astype(int) - START_PAGE_COLOUR) <= 6
    return float(numpy.all(near, axis=2).mean())


async def _screen(guest: Ports) -> Pixels:
    """The screen once it shows the start page, or as it is after a minute without that."""
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

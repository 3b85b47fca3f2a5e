"""The running guest, seen from outside: what a host and its viewers use."""

from __future__ import annotations

import asyncio
import socket

import asyncvnc
import httpx
import numpy
import pytest
from websockets.sync.client import connect

pytestmark = pytest.mark.outside

RFB = b"RFB 003.008\n"
START_PAGE_COLOUR = (0x16, 0x32, 0x4F)


def test_agent_is_healthy(guest):
    answer = httpx.get(f"{guest.agent_url}/health", timeout=20)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["status"] == "ready"
    assert body["failing"] == []


def test_agent_knows_image_and_vm(guest):
    body = httpx.get(f"{guest.agent_url}/health", timeout=20).json()
    assert len(body["image_digest"]) == 64
    assert body["vm_id"]
    assert body["uptime_seconds"] > 0


def test_agent_metrics(guest):
    text = httpx.get(f"{guest.agent_url}/metrics", timeout=30).text
    assert "polydev_agent_up 1" in text


def test_vnc_speaks_rfb(guest):
    with socket.create_connection((guest.host, guest.vnc), timeout=20) as client:
        assert client.recv(12) == RFB


def test_novnc_page(guest):
    answer = httpx.get(f"{guest.novnc_url}/vnc.html", timeout=30)
    assert answer.status_code == 200
    assert "noVNC" in answer.text


def test_novnc_websocket_speaks_rfb(guest):
    url = f"ws://{guest.host}:{guest.novnc}/websockify"
    with connect(url, subprotocols=["binary"], open_timeout=30, proxy=None) as client:
        assert client.recv(timeout=30) == RFB


def test_screen_shows_the_browser(guest):
    pixels = asyncio.run(_screen(guest))
    height, width = pixels.shape[:2]
    assert (width, height) == (1280, 800)
    colours = numpy.unique(pixels.reshape(-1, 3), axis=0)
    assert len(colours) > 20, "the screen is blank"
    page = numpy.all(numpy.abs(pixels.astype(int) - START_PAGE_COLOUR) <= 6, axis=2).mean()
    assert page > 0.4, f"the start page covers {page:.0%} of the screen"


async def _screen(guest):
    async with asyncvnc.connect(guest.host, guest.vnc) as client:
        return (await asyncio.wait_for(client.screenshot(), 30))[:, :, :3]

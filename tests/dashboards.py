"""The host's page in a real Chromium, on a controller with a day of samples."""

from __future__ import annotations

import math
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from playwright.async_api import Browser, Page, Response

from polydev.controller.app_services import Services
from polydev.controller.entities import now
from polydev.controller.host.sample import Sample, SlotCounts
from polydev.controller.store import tables
from tests.relays import HOST, Screens
from tests.web import PATIENCE_MS, is_of_the_machine


@dataclass
class DashboardPage:
    """An open page, and the errors of its console."""

    page: Page
    base: str
    errors: list[str] = field(default_factory=list)
    answers: list[Response] = field(default_factory=list)

    def note(self, kind: str, words: str) -> None:
        if kind == "error" and not is_of_the_machine(words):
            self.errors.append(words)

    async def go(self, path: str) -> None:
        await self.page.goto(f"{self.base}{path}")

    async def sign_in(self, token: str) -> None:
        await self.go("/login")
        await self.page.fill("#token", token)
        await self.page.click("form[action='/login'] button")
        await self.page.wait_for_url(f"{self.base}/")


@asynccontextmanager
async def dashboard_pages(
    browser: Browser, screens: Screens, **options: Any
) -> AsyncIterator[DashboardPage]:
    """A page in its own browser context, signed in as operator; `options` are Playwright's."""
    context = await browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    context.set_default_timeout(PATIENCE_MS)
    page = await context.new_page()
    look = DashboardPage(page, f"http://{HOST}:{screens.port}")
    page.on("console", lambda said: look.note(said.type, said.text))
    page.on("pageerror", lambda error: look.errors.append(str(error)))
    page.on("response", lambda answer: look.answers.append(answer))
    await look.sign_in(screens.tokens["operator"])
    look.errors.clear()  # the start page may not be there
    try:
        yield look
    finally:
        await context.close()


def day_of_samples(end: datetime) -> Iterator[tuple[datetime, Sample]]:
    """Return a day of samples: one a minute, and one every ten seconds in the last hour."""
    at = end - timedelta(hours=24)
    received = sent = 0
    while at < end:
        is_late = at >= end - timedelta(hours=1)
        step = 10 if is_late else 60
        wave = math.sin(2 * math.pi * at.timestamp() / 28800)
        ripple = math.sin(at.timestamp() / 400) + math.sin(at.timestamp() / 97)
        busy = 0.5 + 0.5 * wave
        received += int((400_000 + 350_000 * wave + 90_000 * ripple) * step)
        sent += int((120_000 + 80_000 * wave + 20_000 * ripple) * step)
        held = round(2 + 4 * busy)
        yield (
            at,
            Sample(
                cpu=round(30 + 25 * wave + 5 * ripple, 1),
                memory=round(48 + 14 * wave + ripple, 1),
                disk={
                    "/": round(41 + at.hour / 24, 1),
                    "/var/lib/microvm": round(55 + 6 * wave, 1),
                },
                rx_bytes={"eth0": received, "br-vm": received // 2},
                tx_bytes={"eth0": sent, "br-vm": sent // 2},
                temperature=round(52 + 9 * wave + ripple, 1),
                temperature_critical=100.0,
                slots=SlotCounts(total=8, held=held, pooled=2, primed=2 if held < 6 else 1),
                sessions={
                    "vm_creating": 0,
                    "vm_starting": int(ripple > 1.9),
                    "vm_created": held - 2,
                },
                vms={"creating": 0, "starting": int(ripple > 1.9), "ready": held},
            ),
        )
        at += timedelta(seconds=step)


async def fill(services: Services) -> int:
    """Store a day of samples; return their number."""
    end = now()
    rows = [
        {"at": at, "figures": sample.model_dump(mode="json")} for at, sample in day_of_samples(end)
    ]
    # At once: the first ones are soon more than a day old, and are shown no more.
    async with services.database.writing() as connection:
        await connection.execute(sa.insert(tables.samples), rows)
    await add_starts(services, end)
    return len(rows)


async def add_starts(services: Services, end: datetime) -> None:
    """Add an ended session every 20 minutes: most from the pool, some of each other kind."""
    user = (await services.users.add("user")).id
    slot = services.settings.slots[0]
    vms, sessions = [], []
    for number in range(1, 72):
        asked_at = end - timedelta(minutes=20 * number)
        how = "boot" if number % 24 == 0 else "clone" if number % 7 == 0 else "pool"
        took = {"pool": 0.05 + 0.02 * math.sin(number), "clone": 0.6, "boot": 34.0}[how]
        ready_at = asked_at + timedelta(seconds=took)
        over = {"ended_at": ready_at, "state": "ended"}
        vm = {
            "id": str(uuid.uuid4()),
            "slot": slot,
            "stage": "ready",
            "stage_at": ready_at,
            "image_digest": "4f" * 32,
            "template": None if how == "boot" else "7e" * 32,
            "created_at": asked_at - timedelta(seconds=60 if how == "pool" else 0),
            "ready_at": ready_at,
            "released_at": ready_at,
            "failed_units": [],
            "failed_checks": 0,
            "timings": {},
        }
        session = {
            "id": str(uuid.uuid4()),
            "user_id": user,
            "provider": "claude",
            "vm_id": vm["id"],
            "created_at": asked_at,
            "changed_at": ready_at,
            "expires_at": ready_at,
        }
        vms.append({**vm, **over})
        sessions.append({**session, **over, "state": "completed"})
    async with services.database.writing() as connection:
        await connection.execute(sa.insert(tables.vms), vms)
        await connection.execute(sa.insert(tables.sessions), sessions)

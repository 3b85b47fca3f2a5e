"""Bench: finding a session among 100,000 against finding one among 100, on both databases.

So is what the controller asks all the time. Few and many lie in databases of their own, on one
server, and are asked in turns.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import sqlalchemy as sa

from polydev.controller.migrate import migrate
from polydev.controller.settings import SessionLimits
from polydev.controller.store import tables
from tests.bench.conftest import Ratios
from tests.stores import DIGEST, Store, opened

pytest_plugins = ["tests.databases"]

FEW, MANY = 100, 100_000
ROUNDS = 60
BATCH = 5
# Made one by one; the database itself copies them, which takes a tenth of the time.
MADE = 1000
# Characters of an id that are other ones in each copy.
ID_START = 8
SLOTS = 8
LIMITS = SessionLimits(per_user=SLOTS)

Asking = Callable[["Filled"], Awaitable[object]]


@dataclass
class Filled:
    """A store with many sessions of one user, some of them live."""

    store: Store
    user_id: str
    ids: list[str]


@pytest.fixture(params=["sqlite", "postgresql"])
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Two migrated databases of one kind."""
    if request.param == "sqlite":
        few, many = (f"sqlite+aiosqlite:///{tmp_path / name}" for name in ("few", "many"))
        for url in (few, many):
            asyncio.run(migrate(url))
        yield few, many
        return
    template = request.getfixturevalue("migrated_template")
    server = request.getfixturevalue("postgres_server")
    names = server.create(template), server.create(template)
    yield server.url(names[0]), server.url(names[1])
    for name in names:
        server.drop(name)


def test_session_lookup_time_does_not_grow_with_session_count(
    ratio: Ratios, urls: tuple[str, str]
) -> None:
    async def get(filled: Filled) -> None:
        await filled.store.sessions.get(random.choice(filled.ids))

    async def regular_queries(filled: Filled) -> None:
        """Run the queries of the driver and of pages that follow sessions."""
        store = filled.store
        assert len(await store.vms.held()) == SLOTS
        assert await store.vms.repair() == []
        assert await store.sessions.expire_due() == []
        assert len(await store.sessions.list(live_only=True)) == SLOTS
        await store.sessions.latest_news_number()
        await store.sessions.prune(store.clock.at - timedelta(days=2))
        await store.vms.failed_since(store.clock.at - timedelta(minutes=15))

    kind = urls[0].partition("+")[0]
    found = asyncio.run(measure(urls, {"lookup": get, "steady": regular_queries}))
    for name, (few, many) in found.items():
        ratio(f"{name}-{MANY}/{name}-{FEW} {kind}", many, few, limit=1.3, unit="ms")


async def measure(
    urls: tuple[str, str], questions: dict[str, Asking]
) -> dict[str, tuple[float, float]]:
    """Return each query's median milliseconds with few and with many sessions."""
    async with AsyncExitStack() as stack:
        few, many = [
            await filled_store(await stack.enter_async_context(opened(url, SLOTS, LIMITS)), count)
            for url, count in zip(urls, (FEW, MANY), strict=True)
        ]
        return {name: await in_turns(asking, few, many) for name, asking in questions.items()}


async def in_turns(asking: Asking, few: Filled, many: Filled) -> tuple[float, float]:
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS):
        # The second one measured profits from warm caches, so the order changes.
        for which in (0, 1) if number % 2 else (1, 0):
            started = time.perf_counter()
            for _ in range(BATCH):
                await asking((few, many)[which])
            taken[which].append((time.perf_counter() - started) * 1000 / BATCH)
    return median(taken[0]), median(taken[1])


async def filled_store(store: Store, count: int) -> Filled:
    """A store with so many ended sessions and a live one in each slot, as after a day of use."""
    user_id = await store.new_user()
    made = min(count, MADE)
    apart = count // made
    over = [over_session(store, user_id, number, number * apart) for number in range(made)]
    rows_of = {tables.vms: [vm for vm, _ in over], tables.sessions: [each for _, each in over]}
    async with store.database.writing() as connection:
        for table, rows in rows_of.items():
            await connection.execute(sa.insert(table), rows)
        for _ in range(count // made - 1):
            start = secrets.token_hex(ID_START // 2)
            for table, rows in rows_of.items():
                await connection.execute(copying(table, rows, start))
    for _ in range(SLOTS):
        await store.start_ready(user_id)
    async with store.database.writing() as connection:
        if connection.dialect.name == "postgresql":
            await connection.execute(sa.text("ANALYZE"))  # as the server does by itself
        ids = list((await connection.execute(sa.select(tables.sessions.c.id))).scalars())
    assert len(ids) == count + SLOTS
    return Filled(store, user_id, ids)


def copying(table: sa.Table, rows: list[dict[str, Any]], start: str) -> sa.Insert:
    """The statement that copies these rows; their ids and those of their VMs begin with `start`."""
    names = list(rows[0])
    copied = [
        start + sa.func.substr(table.c[name], ID_START + 1)
        if name in ("id", "vm_id")
        else table.c[name]
        for name in names
    ]
    ids = [row["id"] for row in rows]
    return sa.insert(table).from_select(names, sa.select(*copied).where(table.c.id.in_(ids)))


def over_session(
    store: Store, user_id: str, number: int, seconds_before: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows of a VM that failed and of its session, so long before the last ones."""
    at = store.clock.at - timedelta(hours=1, seconds=seconds_before)
    vm = {
        "id": str(uuid.uuid4()),
        "slot": 2 + number % SLOTS,
        "state": "failed",
        "stage": "kernel",
        "stage_at": at,
        "image_digest": DIGEST,
        "created_at": at,
        "ended_at": at,
        "released_at": at,
        "reason": "kernel panic",
        "failed_units": [],
        "failed_checks": 0,
        "timings": {"kernel": 1.5},
    }
    session = {
        "id": str(uuid.uuid4()),
        "user_id": user_id,
        "provider": "claude",
        "state": "failed",
        "vm_id": vm["id"],
        "created_at": at,
        "changed_at": at,
        "expires_at": at,
        "ended_at": at,
        "reason": "kernel panic",
    }
    return vm, session

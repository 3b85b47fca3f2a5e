"""Shared parts of the tests of webhooks: a store, its contents, and endpoints."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from polydev.controller.store import tables
from polydev.controller.store.transactions import Database
from polydev.controller.store.webhook_log import Delivery, WebhookLog
from polydev.controller.store.webhook_queue import Claim, Subscription, WebhookQueue
from polydev.controller.webhook_events import EVENT_TYPES
from tests.stores import Store

# For what comes at once, on a busy machine.
ENOUGH_SECONDS = 100
CLAIM = timedelta(seconds=60)


def subscription_of(endpoint: str, *types: str, is_gone: bool = False) -> Subscription:
    """An endpoint for all types of events, unless some are named."""
    return Subscription(endpoint, types or EVENT_TYPES, is_gone)


async def claim(
    webhooks: WebhookQueue, store: Store, endpoint: str = "front", limit: int = 9
) -> list[Claim]:
    return await webhooks.claim(endpoint, limit, store.clock() + CLAIM)


async def until(holds: Callable[[], Any]) -> None:
    """Wait until a condition holds; a coroutine may ask the database."""

    async def wait() -> None:
        while True:
            found = holds()
            if await found if asyncio.iscoroutine(found) else found:
                return
            await asyncio.sleep(0.01)

    await asyncio.wait_for(wait(), ENOUGH_SECONDS)


async def until_states(store: Store, endpoint: str = "front", **wanted: int) -> None:
    """Wait until an endpoint's deliveries have exactly these states."""

    async def are_there() -> bool:
        return await states(store, endpoint) == wanted

    await until(are_there)


async def states(store: Store, endpoint: str = "front") -> Counter[str]:
    found = await deliveries(store.database)
    return Counter(row["state"] for row in found if row["endpoint"] == endpoint)


async def until_attempted(log: WebhookLog, attempts: int) -> Delivery:
    """Wait until the only delivery was attempted so often, and return it."""

    async def is_noted() -> bool:
        found = await log.list()
        return bool(found) and found[0].attempts == attempts

    await until(is_noted)
    (found,) = await log.list()
    return found


async def rows(database: Database, table: sa.Table) -> list[Mapping[Any, Any]]:
    async with database.reading() as connection:
        found = await connection.execute(sa.select(table).order_by(*table.primary_key))
        return list(found.mappings())


async def deliveries(database: Database) -> list[Mapping[Any, Any]]:
    return await rows(database, tables.webhook_deliveries)


async def event_types(database: Database) -> list[str]:
    """Return the types of all events in order."""
    return [row["type"] for row in await rows(database, tables.webhook_events)]

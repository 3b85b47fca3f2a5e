"""What tests of webhooks share: a store, what is written in it, and endpoints' words."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from polydev.controller.store import tables
from polydev.controller.store.transactions import Database
from polydev.controller.store.webhooks import Claim, Subscription, Webhooks
from polydev.controller.webhooks.events import EVENT_TYPES
from tests.stores import Store

CLAIM = timedelta(seconds=60)


def wanting(endpoint: str, *types: str, is_gone: bool = False) -> Subscription:
    """Of all types, unless some are named."""
    return Subscription(endpoint, types or EVENT_TYPES, is_gone)


async def claim(
    webhooks: Webhooks, store: Store, endpoint: str = "front", limit: int = 9
) -> list[Claim]:
    return await webhooks.claim(endpoint, limit, store.clock() + CLAIM)


async def rows(database: Database, table: sa.Table) -> list[Mapping[Any, Any]]:
    async with database.reading() as connection:
        found = await connection.execute(sa.select(table).order_by(*table.primary_key))
        return list(found.mappings())


async def deliveries(database: Database) -> list[Mapping[Any, Any]]:
    return await rows(database, tables.webhook_deliveries)


async def told(database: Database) -> list[str]:
    """The types of all events, in their order."""
    return [row["type"] for row in await rows(database, tables.webhook_events)]

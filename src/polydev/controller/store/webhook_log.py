"""The log of webhook deliveries: list, count and resend them."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

import sqlalchemy as sa

from polydev.controller.entities import now
from polydev.controller.store import tables
from polydev.controller.store.transactions import Database, uninterrupted
from polydev.controller.store.webhook_queue import WAITS, gone_endpoints
from polydev.errors import DeliveryNotFound

DeliveryState = Literal["waiting", "delivered", "failed"]
DELIVERY_STATES: tuple[DeliveryState, ...] = get_args(DeliveryState)
_events, _deliveries = tables.webhook_events.c, tables.webhook_deliveries.c
_LOGGED = sa.select(
    *(_deliveries.id, _events.id.label("message_id"), _events.type, _events.at),
    *(_deliveries.endpoint, _deliveries.state, _deliveries.attempts, _deliveries.due_at),
    *(_deliveries.attempted_at, _deliveries.ended_at, _deliveries.status, _deliveries.problem),
    _events.body,
).join_from(tables.webhook_deliveries, tables.webhook_events)


@dataclass(frozen=True)
class Delivery:
    """The delivery of an event to one endpoint.

    at              when the event happened
    due_at          when it is sent next, or its claim ends; None where it does not wait
    attempted_at    the last attempt, with its `status` and `problem`
    """

    id: int
    message_id: str
    type: str
    at: datetime
    endpoint: str
    state: DeliveryState
    attempts: int
    due_at: datetime | None
    attempted_at: datetime | None
    ended_at: datetime | None
    status: int | None
    problem: str | None
    body: str


@dataclass(frozen=True)
class Backlog:
    """Deliveries that an endpoint has not received: how many wait, since when they have been
    failing, and how many failed for good lately.
    """

    waiting: int = 0
    failing_since: datetime | None = None
    failed: int = 0


@uninterrupted
class WebhookLog:
    def __init__(self, database: Database, clock: Callable[[], datetime] = now) -> None:
        self._database = database
        self._clock = clock

    async def get(self, delivery_id: int) -> Delivery:
        """Return a delivery. Raises DeliveryNotFound."""
        async with self._database.reading() as connection:
            found = await connection.execute(_LOGGED.where(_deliveries.id == delivery_id))
            row = found.mappings().one_or_none()
        if row is None:
            raise _no_delivery(delivery_id)
        return Delivery(**row)

    async def list(
        self,
        state: DeliveryState | None = None,
        endpoint: str | None = None,
        limit: int = 100,
        before: int | None = None,
    ) -> builtins.list[Delivery]:
        """List deliveries, newest first; with `before`, those that follow it."""
        asked = _LOGGED.order_by(_deliveries.id.desc()).limit(limit)
        if state is not None:
            asked = asked.where(_deliveries.state == state)
        if endpoint is not None:
            asked = asked.where(_deliveries.endpoint == endpoint)
        if before is not None:
            asked = asked.where(_deliveries.id < before)
        async with self._database.reading() as connection:
            return [Delivery(**row) for row in (await connection.execute(asked)).mappings()]

    async def resend(self, delivery_id: int) -> Delivery:
        """Make a delivery due now, in any state, with all its attempts again.

        Its endpoint is sent messages again even if it had answered 410 Gone. Raises
        DeliveryNotFound.
        """
        again = {"state": "waiting", "due_at": self._clock(), "ended_at": None, "attempts": 0}
        statement = sa.update(tables.webhook_deliveries).where(_deliveries.id == delivery_id)
        gone = tables.webhook_gone
        async with self._database.writing() as connection:
            done = await connection.execute(statement.values(again).returning(_deliveries.endpoint))
            endpoint = done.scalar_one_or_none()
            if endpoint is None:
                raise _no_delivery(delivery_id)
            await connection.execute(sa.delete(gone).where(gone.c.endpoint == endpoint))
            found = await connection.execute(_LOGGED.where(_deliveries.id == delivery_id))
            return Delivery(**found.mappings().one())

    async def backlogs(self, failed_since: datetime) -> dict[str, Backlog]:
        """Return the backlogs of endpoints by name, without those that received everything."""
        tried = sa.case((_deliveries.attempts > 0, _events.at))
        waiting = (
            sa.select(
                _deliveries.endpoint, sa.func.count(), sa.func.min(tried, type_=_events.at.type)
            )
            .join_from(tables.webhook_deliveries, tables.webhook_events)
            .where(WAITS)
            .group_by(_deliveries.endpoint)
        )
        failed = (
            sa.select(_deliveries.endpoint, sa.func.count())
            .where(_deliveries.state == "failed", _deliveries.ended_at >= failed_since)
            .group_by(_deliveries.endpoint)
        )
        async with self._database.reading() as connection:
            waits = {row[0]: row for row in await connection.execute(waiting)}
            lost = {row[0]: row[1] for row in await connection.execute(failed)}
        found = {}
        for name in waits.keys() | lost.keys():
            _, count, since = waits.get(name, (name, 0, None))
            found[name] = Backlog(count, since, lost.get(name, 0))
        return found

    async def gone(self) -> dict[str, str]:
        """Return the endpoints that answered 410 Gone, with the SHA-256 of their URL."""
        return await gone_endpoints(self._database)


def _no_delivery(delivery_id: int) -> DeliveryNotFound:
    return DeliveryNotFound(
        f"there is no webhook delivery {delivery_id}", "./inv webhooks lists all deliveries"
    )

"""Queue of webhooks: events, written in the transaction of their change, and their deliveries.

A process claims a delivery by moving its `due_at` to a later time and then sends it. If the process
ends before it notes the result, the delivery is due again at that time. So each event is delivered
at least once, and twice only if the process ends between sending and noting.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.entities import now
from polydev.controller.store import tables
from polydev.controller.store.transactions import Database, uninterrupted
from polydev.controller.webhook_events import EventType, body_of, new_message_id

_events, _deliveries = tables.webhook_events.c, tables.webhook_deliveries.c
QUEUED_AT_ONCE = 250
WAITS = _deliveries.due_at.is_not(None)
GONE = "the endpoint answered 410 Gone before, so it gets no more messages"
CROWDED_OUT = "{most} deliveries waited for this endpoint, and newer ones replaced this one"
UNKNOWN = "the endpoint is no longer configured"


async def write_event(
    connection: AsyncConnection, kind: EventType, data: Mapping[str, str | None], at: datetime
) -> None:
    """Write an event in the caller's transaction; it is delivered after the commit.

    `data` are ids and names (see `webhook_events.DATA_KEYS`). Write it before a session's news,
    which come last. Raises ValueError, which is a bug, for other data.
    """
    body = body_of(kind, at, data)
    values = {"id": new_message_id(), "type": kind, "at": at, "body": body}
    await connection.execute(sa.insert(tables.webhook_events).values(values))


@dataclass(frozen=True)
class Subscription:
    """An endpoint with the types of events that it wants; `is_gone`: it answered 410 Gone."""

    endpoint: str
    types: Collection[str]
    is_gone: bool = False


@dataclass(frozen=True)
class Claim:
    """A delivery that the claiming process may send until `until`; `body` is sent unchanged."""

    id: int
    endpoint: str
    message_id: str
    body: str
    attempts: int
    until: datetime


@uninterrupted
class WebhookQueue:
    """Events queued for endpoints and delivered; the leader uses it."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = now) -> None:
        self._database = database
        self._clock = clock

    async def has_new(self) -> bool:
        """Return whether there are events that are not queued for endpoints yet."""
        new = sa.select(_events.number).where(_events.queued_at.is_(None)).limit(1)
        async with self._database.reading() as connection:
            return (await connection.execute(new)).first() is not None

    async def queue(self, subscriptions: Collection[Subscription], most_waiting: int) -> set[str]:
        """Queue new events for the endpoints that want them, and return these endpoints.

        Events that no endpoint wants are deleted. If more than `most_waiting` deliveries wait for
        an endpoint, the oldest fail. Several processes may call this: each event is queued once.
        """
        asked = sa.select(_events.number, _events.type).where(_events.queued_at.is_(None))
        asked = asked.order_by(_events.number).limit(QUEUED_AT_ONCE)
        async with self._database.writing() as connection:
            found = (await connection.execute(asked.with_for_update(skip_locked=True))).all()
            at = self._clock()
            rows = [
                _new_delivery(number, each, at)
                for number, kind in found
                for each in subscriptions
                if kind in each.types
            ]
            wanted = {row["event_number"] for row in rows}
            await _note_queued(connection, {number for number, _ in found}, wanted, at)
            if rows:
                await connection.execute(sa.insert(tables.webhook_deliveries), rows)
            endpoints = {str(row["endpoint"]) for row in rows}
            for name in sorted(endpoints):
                await _crowd_out(connection, name, most_waiting, at)
            return endpoints

    async def claim(self, endpoint: str, limit: int, until: datetime) -> list[Claim]:
        """Claim due deliveries of an endpoint up to a limit, the longest due first."""
        at = self._clock()
        due = (_deliveries.endpoint == endpoint, _deliveries.due_at <= at)
        ids = sa.select(_deliveries.id).where(*due).order_by(_deliveries.due_at, _deliveries.id)
        async with self._database.reading() as connection:
            if (await connection.execute(ids.limit(1))).first() is None:
                return []
        async with self._database.writing() as connection:
            asked = ids.limit(limit).with_for_update(skip_locked=True)
            claimed = list((await connection.execute(asked)).scalars())
            await _change(connection, _deliveries.id.in_(claimed), due_at=until)
            statement = (
                sa.select(
                    *(_deliveries.id, _deliveries.endpoint, _events.id.label("message_id")),
                    *(_events.body, _deliveries.attempts, _deliveries.due_at.label("until")),
                )
                .join_from(tables.webhook_deliveries, tables.webhook_events)
                .where(_deliveries.id.in_(claimed))
                .order_by(_deliveries.id)
            )
            found = await connection.execute(statement)
            return [Claim(**row) for row in found.mappings()]

    async def next_due(self, endpoint: str) -> datetime | None:
        """Return when the next delivery of an endpoint is due; None where none waits."""
        asked = sa.select(sa.func.min(_deliveries.due_at)).where(_deliveries.endpoint == endpoint)
        async with self._database.reading() as connection:
            found: datetime | None = (await connection.execute(asked)).scalar_one()
            return found

    async def delivered(self, claim: Claim, status: int) -> None:
        """Note that an endpoint accepted a delivery, even if the claim had ended."""
        at = self._clock()
        said = {"state": "delivered", "status": status, "problem": None}
        said |= {"due_at": None, "attempted_at": at, "ended_at": at}
        async with self._database.writing() as connection:
            attempts = _deliveries.attempts + 1
            await _change(connection, _deliveries.id == claim.id, attempts=attempts, **said)

    async def not_delivered(
        self, claim: Claim, status: int | None, problem: str, due_at: datetime | None
    ) -> None:
        """Note a failed attempt, and when the next one is due; None: it failed for good.

        Does nothing if the claim had ended, since another process has tried since.
        """
        at = self._clock()
        said = {"status": status, "problem": problem, "due_at": due_at, "attempted_at": at}
        if due_at is None:
            said |= {"state": "failed", "ended_at": at}
        async with self._database.writing() as connection:
            attempts = _deliveries.attempts + 1
            await _change(connection, *_is_claimed(claim), attempts=attempts, **said)

    async def release(self, claim: Claim) -> None:
        """Release a claim without an attempt: the delivery is due at once."""
        async with self._database.writing() as connection:
            await _change(connection, *_is_claimed(claim), due_at=self._clock())

    async def fail_unknown(self, endpoints: Collection[str]) -> int:
        """Fail the deliveries that wait for endpoints other than these, and return how many."""
        unknown = (WAITS, _deliveries.endpoint.not_in(endpoints))
        async with self._database.writing() as connection:
            return await _fail(connection, self._clock(), UNKNOWN, *unknown)

    async def mark_gone(self, endpoint: str, url_sha256: str) -> None:
        """Note that an endpoint answered 410 Gone at that URL; its waiting deliveries fail."""
        at, gone = self._clock(), tables.webhook_gone
        async with self._database.writing() as connection:
            await connection.execute(sa.delete(gone).where(gone.c.endpoint == endpoint))
            values = {"endpoint": endpoint, "url_sha256": url_sha256, "at": at}
            await connection.execute(sa.insert(gone).values(values))
            await _fail(connection, at, GONE, WAITS, _deliveries.endpoint == endpoint)

    async def unmark_gone(self, endpoint: str) -> None:
        """Note that an endpoint gets messages again."""
        gone = tables.webhook_gone
        async with self._database.writing() as connection:
            await connection.execute(sa.delete(gone).where(gone.c.endpoint == endpoint))

    async def gone(self) -> dict[str, str]:
        """Return the endpoints that answered 410 Gone, with the SHA-256 of their URL."""
        return await gone_endpoints(self._database)

    async def prune(self, before: datetime) -> int:
        """Delete events from before that time whose deliveries do not wait; return how many."""
        waits = sa.exists().where(_deliveries.event_number == _events.number, WAITS)
        return await self._database.delete(tables.webhook_events, _events.at < before, ~waits)


async def gone_endpoints(database: Database) -> dict[str, str]:
    """Return the SHA-256 of the URL at which each endpoint answered 410 Gone."""
    gone = tables.webhook_gone.c
    async with database.reading() as connection:
        found = await connection.execute(sa.select(gone.endpoint, gone.url_sha256))
        return {row.endpoint: row.url_sha256 for row in found}


def _new_delivery(number: int, to: Subscription, at: datetime) -> dict[str, object]:
    row: dict[str, object] = {"event_number": number, "endpoint": to.endpoint, "attempts": 0}
    if to.is_gone:
        return row | {"state": "failed", "due_at": None, "ended_at": at, "problem": GONE}
    return row | {"state": "waiting", "due_at": at, "ended_at": None, "problem": None}


async def _note_queued(
    connection: AsyncConnection, found: set[int], wanted: set[object], at: datetime
) -> None:
    events = tables.webhook_events
    await connection.execute(
        sa.update(events).where(_events.number.in_(found & wanted)).values(queued_at=at)
    )
    await connection.execute(sa.delete(events).where(_events.number.in_(found - wanted)))


async def _crowd_out(connection: AsyncConnection, endpoint: str, most: int, at: datetime) -> None:
    its = (WAITS, _deliveries.endpoint == endpoint)
    counted = sa.select(sa.func.count()).select_from(tables.webhook_deliveries).where(*its)
    excess = (await connection.execute(counted)).scalar_one() - most
    if excess > 0:
        oldest = sa.select(_deliveries.id).where(*its).order_by(_deliveries.id).limit(excess)
        words = CROWDED_OUT.format(most=most)
        await _fail(connection, at, words, _deliveries.id.in_(oldest.scalar_subquery()))


async def _fail(
    connection: AsyncConnection, at: datetime, problem: str, *which: sa.ColumnElement[bool]
) -> int:
    said = {"state": "failed", "due_at": None, "ended_at": at, "problem": problem}
    return await _change(connection, *which, **said)


async def _change(
    connection: AsyncConnection, *which: sa.ColumnElement[bool], **values: object
) -> int:
    statement = sa.update(tables.webhook_deliveries).where(*which).values(values)
    return (await connection.execute(statement)).rowcount


def _is_claimed(claim: Claim) -> tuple[sa.ColumnElement[bool], ...]:
    return _deliveries.id == claim.id, _deliveries.due_at == claim.until

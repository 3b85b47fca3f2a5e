"""The log of credentials: what was done with them, by whom and when; never their contents."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.entities import (
    Caller,
    CredentialActor,
    CredentialEvent,
    CredentialEventKind,
    Session,
    now,
)
from polydev.controller.store import tables, webhook_queue
from polydev.controller.store.row_mapping import CREDENTIAL_EVENTS, credential_event_of
from polydev.controller.store.transactions import Database, uninterrupted
from polydev.controller.webhook_events import EventType

_events = tables.credential_events.c
# How many entries of one kind are kept of a user: reading credentials over and over must not fill
# the database, nor push out who stored and removed them.
MOST_OF_A_KIND = 10_000
WEBHOOKS: Mapping[CredentialEventKind, EventType] = {
    "stored": "credentials.ready",
    "handed_over": "credentials.ready",
    "read_back": "credentials.ready",
    "removed": "credentials.removed",
}


@dataclass(frozen=True)
class EventActor:
    """The actor that caused an event; `user_id` is None if it was not a user."""

    by: CredentialActor
    user_id: str | None = None


CONTROLLER = EventActor("controller")
OPERATOR = EventActor("operator")


def actor_of(caller: Caller) -> EventActor:
    return EventActor(caller.by, caller.user_id)


async def log_event(
    connection: AsyncConnection,
    at: datetime,
    kind: CredentialEventKind,
    user_id: str,
    provider: str,
    *,
    actor: EventActor = CONTROLLER,
    session_id: str | None = None,
) -> None:
    """Write an event, also for webhooks, in the transaction of the change that it records.

    It comes before a session's news, which are written last.
    """
    if kind in WEBHOOKS:
        data = {"userId": user_id, "provider": provider, "sessionId": session_id}
        await webhook_queue.write_event(connection, WEBHOOKS[kind], data, at)
    await connection.execute(
        sa.insert(tables.credential_events).values(
            at=at,
            user_id=user_id,
            provider=provider,
            kind=kind,
            by=actor.by,
            actor_id=actor.user_id,
            session_id=session_id,
        )
    )


async def log_session_event(
    connection: AsyncConnection, at: datetime, kind: CredentialEventKind, session: Session
) -> None:
    """Log what the controller did with the credentials of a session's user."""
    await log_event(connection, at, kind, session.user_id, session.provider, session_id=session.id)


@uninterrupted
class CredentialLog:
    def __init__(self, database: Database, clock: Callable[[], datetime] = now) -> None:
        self._database = database
        self._clock = clock

    async def list(
        self, user_id: str, limit: int = 100, before: int | None = None
    ) -> builtins.list[CredentialEvent]:
        """Return a user's events, newest first; with `before`, those older than that one."""
        statement = CREDENTIAL_EVENTS.where(_events.user_id == user_id)
        if before is not None:
            statement = statement.where(_events.id < before)
        async with self._database.reading() as connection:
            found = await connection.execute(statement.order_by(_events.id.desc()).limit(limit))
            return [credential_event_of(row) for row in found.mappings()]

    async def prune(self, before: datetime) -> int:
        """Delete events from before that time, and return how many."""
        return await self._database.delete(tables.credential_events, _events.at < before)

    async def trim(self, most: int = MOST_OF_A_KIND) -> int:
        """Delete the oldest events of a user and kind that has more, and return how many."""
        full = sa.select(_events.user_id, _events.kind).group_by(_events.user_id, _events.kind)
        async with self._database.reading() as connection:
            found = (await connection.execute(full.having(sa.func.count() > most))).all()
        return sum([await self._trim(most, *row) for row in found])

    async def _trim(self, most: int, user_id: str, kind: CredentialEventKind) -> int:
        theirs = (_events.user_id == user_id, _events.kind == kind)
        newest = sa.select(_events.id).where(*theirs).order_by(_events.id.desc())
        last = newest.offset(most).limit(1).scalar_subquery()
        return await self._database.delete(tables.credential_events, *theirs, _events.id <= last)

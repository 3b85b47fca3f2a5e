"""Removal of a user with everything that belongs to them.

First the user loses all access, and their sessions end. Their rows are deleted once the driver has
released their VMs, since a VM that holds a slot keeps its session.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.entities import now
from polydev.controller.store import tables
from polydev.controller.store.credential_log import OPERATOR
from polydev.controller.store.credentials import delete_credentials
from polydev.controller.store.session_changes import change_session, locked_session
from polydev.controller.store.transactions import Database
from polydev.controller.store.users import lock_user
from polydev.errors import SessionError

RELEASE_SECONDS = 60.0
PAUSE_SECONDS = 0.3
DELETED_AT_ONCE = 500
REASON = "its user was removed"
_sessions, _vms = tables.sessions.c, tables.vms.c


@dataclass(frozen=True)
class Removed:
    """Counts of rows that were deleted with a user."""

    sessions: int = 0
    tokens: int = 0
    credentials: int = 0


async def remove_user(
    database: Database,
    user_id: str,
    *,
    clock: Callable[[], datetime] = now,
    patience_seconds: float = RELEASE_SECONDS,
) -> Removed:
    """Remove a user, and return what was deleted.

    Raises UserNotFound, and SessionError where VMs still hold their slots after
    `patience_seconds`: then the user exists, but has no token, no credentials and no live session.
    """
    deadline, gone = time.monotonic() + patience_seconds, Removed()
    while True:
        async with database.writing() as connection:
            await lock_user(connection, user_id)
            gone = await _end_access(connection, user_id, clock(), gone)
            held = await _held_vms(connection, user_id)
            if not held:
                sessions = await _delete_sessions(connection, user_id)
                await connection.execute(
                    sa.delete(tables.users).where(tables.users.c.id == user_id)
                )
                return replace(gone, sessions=sessions)
        if time.monotonic() > deadline:
            raise SessionError(
                f"user {user_id} has no tokens and credentials any more, but {held} of their VMs "
                f"still hold slots after {patience_seconds:g} s",
                "check that the controller runs (./inv doctor), then remove the user again",
            )
        await asyncio.sleep(PAUSE_SECONDS)


async def _end_access(
    connection: AsyncConnection, user_id: str, at: datetime, gone: Removed
) -> Removed:
    """Delete tokens, sign-ins and credentials, end the sessions, and return the count so far."""
    for table in (tables.tickets, tables.sign_ins):
        await connection.execute(sa.delete(table).where(table.c.user_id == user_id))
    tokens = sa.delete(tables.tokens).where(tables.tokens.c.user_id == user_id)
    tokens_gone = (await connection.execute(tokens)).rowcount
    live = sa.select(_sessions.id).where(_sessions.user_id == user_id, _sessions.ended_at.is_(None))
    for session_id in (await connection.execute(live.order_by(_sessions.id))).scalars().all():
        session = await locked_session(connection, session_id)
        await change_session(connection, session, "terminate", at, reason=REASON)
    # After the sessions, as in all transactions that change both, so that none deadlock.
    removed = await delete_credentials(connection, at, user_id, OPERATOR)
    return replace(
        gone, tokens=gone.tokens + tokens_gone, credentials=gone.credentials + len(removed)
    )


async def _held_vms(connection: AsyncConnection, user_id: str) -> int:
    held = (
        sa.select(sa.func.count())
        .select_from(tables.vms.join(tables.sessions, _sessions.vm_id == _vms.id))
        .where(_sessions.user_id == user_id, _vms.released_at.is_(None))
    )
    return int((await connection.execute(held)).scalar_one())


async def _delete_sessions(connection: AsyncConnection, user_id: str) -> int:
    theirs = sa.select(_sessions.id, _sessions.vm_id).where(_sessions.user_id == user_id)
    found = (await connection.execute(theirs)).all()
    news = tables.session_news
    for at in range(0, len(found), DELETED_AT_ONCE):
        some = found[at : at + DELETED_AT_ONCE]
        ids, vm_ids = [row.id for row in some], [row.vm_id for row in some]
        await connection.execute(sa.delete(news).where(news.c.session_id.in_(ids)))
        await connection.execute(sa.delete(tables.sessions).where(_sessions.id.in_(ids)))
        await connection.execute(sa.delete(tables.vms).where(_vms.id.in_(vm_ids)))
    return len(found)

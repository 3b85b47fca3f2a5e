"""The errors of starting and using sessions."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.entities import Session
from polydev.controller.store.row_mapping import LIVE_SESSIONS, session_of
from polydev.controller.store.vm_slots import count_slots
from polydev.errors import CapacityError, SessionError, SessionExpired, TooManySessions


def key_used(session: Session) -> SessionError:
    return SessionError(
        f"the idempotency key belongs to session {session.id}, which was started with another "
        "provider, recipient, or choice about stored credentials",
        "use a new idempotency key for another session",
    )


def too_many(live: Sequence[str], limit: int) -> TooManySessions:
    return TooManySessions(
        f"the user already has {len(live)} of {limit} allowed sessions: {', '.join(live)}",
        "end one of them first",
    )


def session_over(session: Session) -> SessionExpired:
    reason = f" ({session.reason})" if session.reason else ""
    return SessionExpired(f"the session is over: {session.state}{reason}", "start a new session")


async def no_slot(connection: AsyncConnection) -> CapacityError:
    """Return the error that no slot is free, with the session that is idle for longest."""
    slots = await count_slots(connection)
    if not slots:
        return CapacityError(
            "the host has no slots", "declare slots in the inventory, then run ./inv deploy"
        )
    live = LIVE_SESSIONS.c
    used_at = sa.func.coalesce(live.heartbeat_at, live.created_at)
    found = await connection.execute(sa.select(LIVE_SESSIONS).order_by(used_at).limit(1))
    row = found.mappings().one_or_none()
    if row is None:
        return CapacityError(
            f"all {slots} slots are held by VMs that are stopping", "try again in a minute"
        )
    oldest = session_of(row)
    since = oldest.heartbeat_at or oldest.created_at
    return CapacityError(
        f"all {slots} slots are taken; the oldest idle session is {oldest.id}, not used since "
        f"{since:%Y-%m-%dT%H:%M:%SZ}",
        "end a session, or try again later",
    )

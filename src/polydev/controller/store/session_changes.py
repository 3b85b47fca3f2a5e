"""Changes of a session and its VM within the caller's transaction.

All transactions lock in one order, first the session and then its VM, and write news last, so that
they cannot deadlock. SQLite has one writer anyhow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.entities import Session, Vm
from polydev.controller.session_and_vm_states import (
    LIVE_VM_STATES,
    SessionEvent,
    is_live,
    next_state,
)
from polydev.controller.store import tables, webhook_queue
from polydev.controller.store.row_mapping import SESSIONS, VMS, session_of, vm_of
from polydev.controller.store.session_errors import session_over
from polydev.controller.webhook_events import SESSION_EVENTS, EventType
from polydev.errors import SessionNotFound, VmError

# The key of an advisory lock in PostgreSQL: any number, the same in all processes.
_NEWS_LOCK = 0x706F6C79


async def locked_session(connection: AsyncConnection, session_id: str) -> Session:
    """Lock a session until the transaction ends. Raises SessionNotFound."""
    found = await connection.execute(
        SESSIONS.where(tables.sessions.c.id == session_id).with_for_update(key_share=True)
    )
    row = found.mappings().one_or_none()
    if row is None:
        raise no_session(session_id)
    return session_of(row)


async def locked_live_session(connection: AsyncConnection, session_id: str) -> Session:
    """Lock a session that is not over. Raises SessionNotFound and SessionExpired."""
    session = await locked_session(connection, session_id)
    if not session.is_live:
        raise session_over(session)
    return session


async def locked_vm(connection: AsyncConnection, vm_id: str) -> tuple[Vm, Session | None]:
    """Lock a VM and its session, if it has one. Raises VmError if there is no such VM."""
    owned = await connection.execute(
        SESSIONS.where(tables.sessions.c.vm_id == vm_id).with_for_update(key_share=True)
    )
    session = owned.mappings().one_or_none()
    found = await connection.execute(
        VMS.where(tables.vms.c.id == vm_id).with_for_update(key_share=True, of=tables.vms)
    )
    row = found.mappings().one_or_none()
    if row is None:
        raise no_vm(vm_id)
    return vm_of(row), session_of(session) if session else None


async def change_session(
    connection: AsyncConnection,
    session: Session,
    event: SessionEvent,
    at: datetime,
    *,
    reason: str | None = None,
    expires_at: datetime | None = None,
    values: Mapping[str, Any] | None = None,
) -> Session:
    """Change the state of a locked session by an event, add news, and stop its VM if it ends.

    values  of other fields to change with the state

    Raises SessionExpired if the session is over, and ValueError for an event that its state does
    not allow.
    """
    state = next_state(session.state, event)
    ended = not is_live(state)
    changed = await write_session(
        connection,
        session,
        state=state,
        changed_at=at,
        ended_at=at if ended else None,
        reason=reason if ended else None,
        expires_at=expires_at or session.expires_at,
        **(values or {}),
    )
    if ended:
        await _stop_vm(connection, session.vm_id)
    await add_state_news(connection, changed)
    return changed


async def write_session(connection: AsyncConnection, session: Session, **values: Any) -> Session:
    """Write fields of a locked session, and return the session with them."""
    await connection.execute(
        sa.update(tables.sessions).where(tables.sessions.c.id == session.id).values(values)
    )
    return replace(session, **values)


async def _stop_vm(connection: AsyncConnection, vm_id: str) -> None:
    await connection.execute(
        sa.update(tables.vms)
        .where(tables.vms.c.id == vm_id, tables.vms.c.state.in_(LIVE_VM_STATES))
        .values(state="stopping")
    )


async def change_vm(connection: AsyncConnection, vm_id: str, **values: object) -> None:
    await connection.execute(sa.update(tables.vms).where(tables.vms.c.id == vm_id).values(values))


async def add_state_news(connection: AsyncConnection, session: Session) -> None:
    """Add news of a session's state, for its followers and for webhooks."""
    if event := SESSION_EVENTS.get(session.state):
        await queue_webhook(connection, session, event, session.changed_at)
    data = {"state": session.state} | ({"reason": session.reason} if session.reason else {})
    await add_news(connection, session.id, session.changed_at, "state", data)


async def queue_webhook(
    connection: AsyncConnection, session: Session, event: EventType, at: datetime
) -> None:
    """Write an event of a session for webhooks; its news must follow."""
    data = {"sessionId": session.id, "userId": session.user_id}
    data |= {"provider": session.provider, "state": session.state}
    await webhook_queue.write_event(connection, event, data, at)


async def add_news(
    connection: AsyncConnection,
    session_id: str,
    at: datetime,
    kind: str,
    data: Mapping[str, object],
) -> None:
    """Write news of a session; nothing but the commit may follow.

    News become visible in the order of their numbers, so that readers miss none. Without the lock,
    PostgreSQL could commit a later number first.
    """
    if connection.dialect.name == "postgresql":
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_NEWS_LOCK)))
    await connection.execute(
        sa.insert(tables.session_news).values(
            session_id=session_id, at=at, kind=kind, data=dict(data)
        )
    )


def no_session(session_id: str) -> SessionNotFound:
    return SessionNotFound(f"there is no session {session_id}")


def no_vm(vm_id: str) -> VmError:
    return VmError(f"there is no VM {vm_id}")

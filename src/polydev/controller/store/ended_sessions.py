"""Deletion of sessions that ended long ago.

They go with their VMs and news, in one transaction, and so do VMs of the pool that never had a
session. A session stays while its VM holds a slot. By their foreign keys, rows that refer to a
session are deleted with it or, as a user's credentials, lose the reference.
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from polydev.controller.store import tables
from polydev.controller.store.transactions import Database

_sessions, _vms = tables.sessions.c, tables.vms.c


async def delete_ended_sessions(database: Database, before: datetime, limit: int) -> int:
    """Delete sessions that ended before that time, up to a limit, and return how many."""
    async with database.reading() as connection:
        over = (await connection.execute(_forgettable(before, 1))).first()
        unused = sa.select(_vms.id).where(*_unused(before)).limit(1)
        if over is None and (await connection.execute(unused)).first() is None:
            return 0  # without taking the write lock
    async with database.writing() as connection:
        asked = _forgettable(before, limit).with_for_update(of=tables.sessions)
        found = (await connection.execute(asked)).all()
        ids, vm_ids = [row.id for row in found], [row.vm_id for row in found]
        news = tables.session_news
        await connection.execute(sa.delete(news).where(news.c.session_id.in_(ids)))
        await connection.execute(sa.delete(tables.sessions).where(_sessions.id.in_(ids)))
        await connection.execute(sa.delete(tables.vms).where(_vms.id.in_(vm_ids)))
        await connection.execute(sa.delete(tables.vms).where(*_unused(before)))
        return len(ids)


def _forgettable(before: datetime, limit: int) -> sa.Select[tuple[str, str]]:
    """Select the oldest first, by their creation, which has an index: no session ends before it."""
    return (
        sa.select(_sessions.id, _sessions.vm_id)
        .join_from(tables.sessions, tables.vms, _vms.id == _sessions.vm_id)
        .where(_sessions.created_at < before, _sessions.ended_at < before)
        .where(_vms.released_at.is_not(None))
        .order_by(_sessions.created_at)
        .limit(limit)
    )


def _unused(before: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    """Return the conditions for pool VMs that ended before that time; the first is indexed."""
    return (_vms.created_at < before, _vms.pooled, _vms.released_at < before)

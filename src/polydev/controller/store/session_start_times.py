"""Starts of sessions: the time from the request until the VM was ready."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import sqlalchemy as sa

from polydev.controller.settings import SessionLimits
from polydev.controller.store import tables
from polydev.controller.store.transactions import Database, uninterrupted

StartKind = Literal["pool", "clone", "boot"]

_sessions, _vms = tables.sessions.c, tables.vms.c


@dataclass(frozen=True)
class SessionStart:
    """One session whose VM became ready.

    how      `pool`: the VM was made before the session; `clone`: it was resumed from a template
             for this session; `boot`: it booted
    seconds  from the request until the VM was ready
    """

    ready_at: datetime
    how: StartKind
    seconds: float


@uninterrupted
class SessionStarts:
    def __init__(self, database: Database, limits: SessionLimits) -> None:
        self._database = database
        self._limits = limits

    async def between(self, start: datetime, end: datetime) -> list[SessionStart]:
        """Return the sessions that became ready after `start` and until `end`, in that order.

        A session lasts `max_seconds` at most, so older ones need not be read.
        """
        longest = timedelta(seconds=self._limits.max_seconds)
        asked = (
            sa.select(
                _sessions.created_at.label("asked_at"),
                _vms.created_at.label("made_at"),
                _vms.ready_at,
                _vms.template,
            )
            .join_from(tables.sessions, tables.vms, _vms.id == _sessions.vm_id)
            .where(
                _sessions.created_at > start - longest,
                _sessions.created_at <= end,
                _vms.ready_at > start,
                _vms.ready_at <= end,
            )
            .order_by(_vms.ready_at)
        )
        async with self._database.reading() as connection:
            return [
                SessionStart(
                    ready_at,
                    start_kind(made_at, asked_at, template),
                    round((ready_at - asked_at).total_seconds(), 3),
                )
                for asked_at, made_at, ready_at, template in await connection.execute(asked)
            ]


def start_kind(made_at: datetime, asked_at: datetime | None, template: str | None) -> StartKind:
    """Return how a session got its VM, or will get it: see SessionStart.

    asked_at    the time of the session's request; None where the VM waits for a session
    """
    if template is None:
        return "boot"
    return "pool" if asked_at is None or made_at < asked_at else "clone"

"""Alerts: one standing alert for each rule and subject, and past ones."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from polydev.controller.entities import Alert, Severity, now
from polydev.controller.store.tables import alerts
from polydev.controller.store.transactions import Database, uninterrupted

KEPT_ALERTS = timedelta(days=30)  # after they were cleared


@uninterrupted
class Alerts:
    def __init__(self, database: Database, clock: Callable[[], datetime] = now) -> None:
        self._database = database
        self._clock = clock

    async def standing(self) -> list[Alert]:
        """Return the standing alerts, oldest first."""
        query = sa.select(alerts).where(alerts.c.cleared_at.is_(None)).order_by(alerts.c.id)
        async with self._database.reading() as connection:
            return [_alert(row) for row in (await connection.execute(query)).mappings()]

    async def history(self, since: datetime, limit: int = 100) -> list[Alert]:
        """Return the alerts that stood at some time since then, newest first."""
        query = (
            sa.select(alerts)
            .where(sa.or_(alerts.c.cleared_at.is_(None), alerts.c.cleared_at >= since))
            .order_by(alerts.c.raised_at.desc(), alerts.c.id.desc())
            .limit(limit)
        )
        async with self._database.reading() as connection:
            return [_alert(row) for row in (await connection.execute(query)).mappings()]

    async def raise_(
        self, rule: str, subject: str, severity: Severity, message: str, value: float | None
    ) -> Alert | None:
        """Raise an alert, or change the severity of a standing one.

        None if it already has that severity, or another process raises it at the same time.
        """
        try:
            return await self._raise(rule, subject, severity, message, value)
        except IntegrityError:
            return None

    async def _raise(
        self, rule: str, subject: str, severity: Severity, message: str, value: float | None
    ) -> Alert | None:
        said = {"severity": severity, "message": message, "value": value}
        stands = sa.select(alerts.c.id).where(*_standing(rule, subject))
        change = sa.update(alerts).where(*_standing(rule, subject), alerts.c.severity != severity)
        async with self._database.writing() as connection:
            if (await connection.execute(stands)).scalar_one_or_none() is not None:
                found = await connection.execute(change.values(**said).returning(alerts))
            else:
                key = {"rule": rule, "subject": subject, "raised_at": self._clock()}
                found = await connection.execute(
                    sa.insert(alerts).values(**key, **said).returning(alerts)
                )
            return _alert_or_none(found)

    async def clear(self, rule: str, subject: str) -> Alert | None:
        """Clear a standing alert; None if there is none."""
        change = (
            sa.update(alerts)
            .where(*_standing(rule, subject))
            .values(cleared_at=self._clock())
            .returning(alerts)
        )
        async with self._database.writing() as connection:
            return _alert_or_none(await connection.execute(change))

    async def prune(self, before: datetime) -> int:
        """Delete alerts that were cleared before that time, and return how many."""
        async with self._database.writing() as connection:
            done = await connection.execute(sa.delete(alerts).where(alerts.c.cleared_at < before))
            return done.rowcount


def _standing(rule: str, subject: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        alerts.c.rule == rule,
        alerts.c.subject == subject,
        alerts.c.cleared_at.is_(None),
    )


def _alert(row: sa.RowMapping) -> Alert:
    return Alert(**{str(name): value for name, value in row.items()})


def _alert_or_none(found: sa.CursorResult[Any]) -> Alert | None:
    row = found.mappings().one_or_none()
    return None if row is None else _alert(row)

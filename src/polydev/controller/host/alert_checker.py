"""Raises and clears alerts: what is observed against what stands in the database, and messages.

The database is asked each time, so alerts survive a restart and are not told twice.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from datetime import datetime

import structlog

from polydev.controller.host.alert_outbox import AlertMessage, MessageKind
from polydev.controller.host.alerting import Change, Key, Observed, Pending, changes_due
from polydev.controller.model import Alert, Severity
from polydev.controller.settings import AlertRules
from polydev.controller.store.alerts import Alerts

log = structlog.stdlib.get_logger(__name__)

KINDS: Mapping[Severity, MessageKind] = {"warning": "warning", "critical": "failure"}


class AlertChecker:
    def __init__(
        self, alerts: Alerts, limits: AlertRules, send: Callable[[AlertMessage], None]
    ) -> None:
        self._alerts = alerts
        self._limits = limits
        self._send = send
        self._pending: dict[Key, Pending] = {}

    async def consider(self, observed: Observed, at: datetime) -> list[Alert]:
        """Raise and clear what is due, and tell of it; the alerts that stand then."""
        standing = await self._alerts.standing()
        due, self._pending = changes_due(
            {(each.rule, each.subject): each.severity for each in standing},
            self._pending,
            observed,
            at,
            self._limits,
        )
        for change in due:
            await self._make(change)
        return await self._alerts.standing() if due else standing

    async def _make(self, change: Change) -> None:
        if change.severity is None:
            done = await self._alerts.clear(change.rule, change.subject)
        else:
            done = await self._alerts.raise_(
                change.rule, change.subject, change.severity, change.message, change.value
            )
        if done is None:  # another process was first, and tells of it
            return
        log.warning(
            change.event,
            rule=change.rule,
            subject=change.subject,
            severity=change.severity,
            reason=change.message,
        )
        if change.is_worse or change.severity is None:
            self._send(message_of(change, socket.gethostname()))


def message_of(change: Change, host: str) -> AlertMessage:
    """What people are told, on whatever they read it."""
    name = change.rule.replace("_", " ")
    if change.severity is None:
        return AlertMessage(f"[cleared] {host}: {name}", change.message, "success")
    return AlertMessage(
        f"[{change.severity}] {host}: {name}", change.message, KINDS[change.severity]
    )

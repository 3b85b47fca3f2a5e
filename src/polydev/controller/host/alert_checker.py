"""Checks all alert rules with each sample: raises and clears alerts, and sends messages.

    alert_rules --Observed--> alert_changes --AlertChange--> database, messages

The alerts that stand are read from the database each time: they survive a restart, and nobody gets
the same message twice.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import structlog

from polydev.controller.entities import Alert, Severity
from polydev.controller.host import alert_rules as rules
from polydev.controller.host.alert_changes import AlertChange, Key, PendingChange, changes_due
from polydev.controller.host.alert_outbox import AlertMessage, MessageKind
from polydev.controller.host.alert_rules import Observed, Unknown
from polydev.controller.host.blocking_call import BlockingCall, NoAnswer
from polydev.controller.host.deployments import newest_failed
from polydev.controller.host.network_watch_report import read_report
from polydev.controller.host.sample import Sample, Workload
from polydev.controller.machines.hypervisor import Hypervisor
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.alerts import Alerts
from polydev.controller.store.webhook_log import WebhookLog
from polydev.errors import Error

log = structlog.stdlib.get_logger(__name__)

KINDS: Mapping[Severity, MessageKind] = {"warning": "warning", "critical": "failure"}
# How long a webhook delivery that failed for good is worth an alert.
FAILED_LATELY = timedelta(days=1)


class AlertChecker:
    def __init__(
        self,
        settings: ControllerSettings,
        alerts: Alerts,
        webhook_log: WebhookLog,
        hypervisor: Hypervisor | None,
        send: Callable[[AlertMessage], None],
        *,
        deployments_folder: Path,
        network_file: Path,
    ) -> None:
        self._settings = settings
        self._alerts = alerts
        self._webhook_log = webhook_log
        self._hypervisor = hypervisor if settings.templates else None
        self._send = send
        self._failed_deployment = BlockingCall(partial(newest_failed, deployments_folder))
        self._network_report = BlockingCall(partial(read_report, network_file))
        self._certificate_expires_at = _certificate_expires_at(settings)
        self._pending: dict[Key, PendingChange] = {}

    async def check(self, sample: Sample, workload: Workload, at: datetime) -> list[Alert]:
        """Raise and clear the alerts that are due, and return those that stand then."""
        observed = await self._observe(sample, workload, at)
        for rule, found in observed.items():
            if isinstance(found, Unknown):
                log.debug("alert_rule_not_checked", rule=rule, reason=found.reason)
        standing = await self._alerts.standing()
        due, self._pending = changes_due(
            {(each.rule, each.subject): each.severity for each in standing},
            self._pending,
            observed,
            at,
            self._settings.alert,
        )
        for change in due:
            await self._make(change)
        return await self._alerts.standing() if due else standing

    async def _observe(self, sample: Sample, workload: Workload, at: datetime) -> Observed:
        return {
            **rules.observe_sample(sample, workload, self._settings.alert),
            **await self._observe_deployments(),
            **await self._observe_network(),
            **await self._observe_template(),
            **rules.observe_certificate(self._certificate_expires_at, at),
            **await self._observe_webhooks(at),
        }

    async def _observe_deployments(self) -> Observed:
        try:
            return rules.observe_deployments(await self._failed_deployment())
        except NoAnswer as error:
            return {"deploy_failed": Unknown(str(error))}

    async def _observe_network(self) -> Observed:
        try:
            return rules.observe_network(await self._network_report())
        except NoAnswer as error:
            is_there = not isinstance(error.__cause__, FileNotFoundError)
            return rules.observe_no_network_report(str(error), is_there=is_there)

    async def _observe_template(self) -> Observed:
        if self._hypervisor is None:
            return rules.observe_template(None)
        try:
            return rules.observe_template(await self._hypervisor.templates())
        except Error as error:
            return {"template_missing": Unknown(error.message)}

    async def _observe_webhooks(self, at: datetime) -> Observed:
        backlogs = await self._webhook_log.backlogs(at - FAILED_LATELY)
        return rules.observe_webhooks(backlogs, self._settings.webhooks, at)

    async def _make(self, change: AlertChange) -> None:
        if change.severity is None:
            done = await self._alerts.clear(change.rule, change.subject)
        else:
            done = await self._alerts.raise_(
                change.rule, change.subject, change.severity, change.message, change.value
            )
        if done is None:  # another process was first, and sends the message
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


def message_of(change: AlertChange, host: str) -> AlertMessage:
    """Return the message to people about a change, for any service."""
    name = change.rule.replace("_", " ")
    if change.severity is None:
        return AlertMessage(f"[cleared] {host}: {name}", change.message, "success")
    title = f"[{change.severity}] {host}: {name}"
    return AlertMessage(title, change.message, KINDS[change.severity])


def _certificate_expires_at(settings: ControllerSettings) -> datetime | None:
    """Return when the controller's own certificate expires; None where it has none."""
    if settings.tls_certificate is None:
        return None
    from polydev.controller.tls import expiry_of  # dear to import

    return expiry_of(settings.tls_certificate.get_secret_value())

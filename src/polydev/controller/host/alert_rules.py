"""Alert rules: what each rule finds, subject by subject. Pure.

    sample, records, reports --observe_*--> Observed --alert_changes.changes_due--> alerts

A rule has one way to say that there is nothing to report: `all_clear`. A rule that could not check
returns `Unknown`, which leaves its alerts as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from polydev.controller.entities import Severity
from polydev.controller.host.network_watch_report import NetworkDifference
from polydev.controller.host.sample import Sample, Workload, disk_key
from polydev.controller.host.system_status import (
    Status,
    percent_text,
    status_of_percent,
    status_of_temperature,
    temperature_text,
)
from polydev.controller.machines.hypervisor import TemplatesReport
from polydev.controller.settings import WARM_PERCENT, AlertSettings, WebhookSettings
from polydev.controller.store.webhook_log import Backlog

Rule = Literal[
    "cpu",
    "memory",
    "disk",
    "temperature",
    "failed_boots",
    "not_resumed",
    "template_missing",
    "no_slots",
    "unhealthy_vms",
    "deploy_failed",
    "certificate",
    "vm_isolation",
    "vm_network",
    "webhooks",
]
HOST = "host"
CERTIFICATE_WARNING_DAYS = 14.0
CERTIFICATE_CRITICAL_DAYS = 3.0
MOST_SUBJECT_CHARACTERS = 200
MOST_MESSAGE_CHARACTERS = 500

# A condition that comes and goes must last before it counts; an event counts at once.
LASTING: frozenset[Rule] = frozenset(
    (
        "cpu",
        "memory",
        "disk",
        "temperature",
        "template_missing",
        "no_slots",
        "unhealthy_vms",
        "vm_network",
    )
)


@dataclass(frozen=True)
class Observation:
    """The finding of a rule about one subject.

    raises  the alert that this calls for
    keeps   the alert that may stay if there is one, as severe or more; this is the hysteresis
    """

    subject: str
    message: str
    value: float | None
    raises: Severity | None
    keeps: Severity | None


@dataclass(frozen=True)
class Unknown:
    """A rule could not check anything: its alerts stay as they are."""

    reason: str


Findings = Sequence[Observation] | Unknown
Observed = Mapping[Rule, Findings]


def all_clear(subject: str, message: str, value: float | None = None) -> Observation:
    """Return that there is nothing to report about a subject: its alert is cleared, if it has one.

    `changes_due` uses it also for subjects of alerts that their rule did not mention.
    """
    return Observation(subject, message, value, raises=None, keeps=None)


def gone_message(rule: str, subject: str) -> str:
    """Return why an alert is cleared whose subject its rule did not mention."""
    return {
        "disk": f"filesystem {subject} is no longer mounted",
        "deploy_failed": f"deployment {subject} has succeeded or is no longer the newest",
        "webhooks": f"webhook endpoint {subject} is no longer configured",
        "vm_isolation": f"{subject} is as declared",
        "vm_network": f"{subject} is as declared",
    }.get(rule, f"{subject} no longer exists")


def observe_sample(sample: Sample, workload: Workload | None, limits: AlertSettings) -> Observed:
    """Apply all rules about a sample. `workload` is None where the database did not answer."""
    return {
        "cpu": [percent_observation("CPU", HOST, sample.cpu, limits)],
        "memory": [percent_observation("memory", HOST, sample.memory, limits)],
        "disk": _disks(sample, limits),
        "temperature": _temperature(sample, limits),
        **_observe_workload(sample, workload, limits),
    }


def _disks(sample: Sample, limits: AlertSettings) -> Findings:
    if "disk" in sample.unavailable:
        return Unknown(sample.unavailable["disk"])
    prefix = disk_key("")
    unmeasured = [
        name.removeprefix(prefix) for name in sample.unavailable if name.startswith(prefix)
    ]
    values = {**dict.fromkeys(unmeasured), **sample.disk}
    return [
        percent_observation(f"disk {mount}", mount, value, limits)
        for mount, value in values.items()
    ]


def _temperature(sample: Sample, limits: AlertSettings) -> Findings:
    if "temperature" in sample.unavailable:
        return Unknown(sample.unavailable["temperature"])
    return [temperature_observation(sample.temperature, sample.temperature_critical, limits)]


def _observe_workload(sample: Sample, workload: Workload | None, limits: AlertSettings) -> Observed:
    slots = sample.slots
    if workload is None or slots is None:
        unknown = Unknown("the database did not answer")
        return dict.fromkeys(("failed_boots", "not_resumed", "no_slots", "unhealthy_vms"), unknown)
    failing = sum(each.state == "ready" and each.failed_checks > 0 for each in workload.held)
    failed = workload.failed_while_up
    return {
        "failed_boots": [failed_boots_observation(workload.failed_boots, limits)],
        "not_resumed": [not_resumed_observation(*workload.not_resumed, limits)],
        "no_slots": [no_slots_observation(slots.total, slots.held - slots.pooled)],
        "unhealthy_vms": [unhealthy_vms_observation(failing, failed, limits)],
    }


def percent_observation(
    what: str, subject: str, value: float | None, limits: AlertSettings
) -> Observation:
    """Observe a share of the host. One that cannot be measured (None) keeps the alert it has."""
    subject, message = subject[:MOST_SUBJECT_CHARACTERS], percent_text(what, value)
    if value is None:
        return Observation(subject, message, None, raises=None, keeps="critical")
    raises = _severity(status_of_percent(value, limits))
    keeps = _severity(status_of_percent(value + limits.hysteresis_percent, limits))
    if keeps is not None and raises is None:
        cleared_percent = limits.warning_percent - limits.hysteresis_percent
        message += f"; the alert is cleared below {cleared_percent:g} %"
    return Observation(subject, message, value, raises, keeps)


def temperature_observation(
    celsius: float | None, critical_celsius: float | None, limits: AlertSettings
) -> Observation:
    """Observe the hottest sensor; one without a critical value raises nothing.

    The hysteresis is a percentage of the critical value.
    """
    if celsius is None:
        return all_clear(HOST, "the host no longer has a temperature sensor")
    if critical_celsius is None:
        return all_clear(HOST, "the temperature sensor no longer names a critical value", celsius)
    margin = critical_celsius * limits.hysteresis_percent / 100
    raises = _severity(status_of_temperature(celsius, critical_celsius))
    keeps = _severity(status_of_temperature(celsius + margin, critical_celsius))
    message = temperature_text(celsius, critical_celsius)
    if keeps is not None and raises is None:
        cleared_celsius = critical_celsius * WARM_PERCENT / 100 - margin
        message += f"; the alert is cleared at {cleared_celsius:g} °C"
    return Observation(HOST, message, celsius, raises, keeps)


def _severity(status: Status) -> Severity | None:
    return status if status == "warning" or status == "critical" else None


def failed_boots_observation(failed: int, limits: AlertSettings) -> Observation:
    """Observe VMs that failed lately; an alert stays until fewer than half as many are left."""
    return Observation(
        HOST,
        f"{failed} VMs failed to boot in the last {_minutes(limits.failed_boots_seconds)}",
        float(failed),
        raises="critical" if failed >= limits.failed_boots else None,
        keeps="critical" if failed * 2 >= limits.failed_boots else None,
    )


def not_resumed_observation(booted: int, reason: str, limits: AlertSettings) -> Observation:
    """Observe VMs that booted although they should have been resumed from a template."""
    severity: Severity | None = "warning" if booted else None
    lately = _minutes(limits.failed_boots_seconds)
    message = f"{booted} VMs booted in the last {lately} instead of resuming from a template"
    if reason:
        message += f"; the last one because {reason}"
    return Observation(HOST, message, float(booted), severity, severity)


def observe_template(report: TemplatesReport | None) -> Observed:
    """Observe the golden image's template; `None` where templates are off."""
    return {"template_missing": [template_missing_observation(report)]}


def template_missing_observation(report: TemplatesReport | None) -> Observation:
    """Observe whether the golden image has a template; one that is being made raises nothing."""
    if report is None:
        return all_clear(HOST, "templates are off")
    if report.origin.template == report.wanted:
        return all_clear(HOST, "the golden image has its template")
    message = f"golden image {report.golden[:12]} has no template, so "
    if report.origin.template:
        message += f"VMs are still resumed from image {report.origin.image_digest[:12]}"
    else:
        message += "VMs boot instead of being resumed"
    message += f": {report.failure or 'no template is being made'}"
    raises: Severity | None = None if report.step else "warning"
    return Observation(HOST, message, None, raises, "warning")


def no_slots_observation(total: int, held: int) -> Observation:
    severity: Severity | None = "warning" if total and held >= total else None
    message = f"{held} of {total} slots are in use"
    return Observation(HOST, message, float(total - held), severity, severity)


def unhealthy_vms_observation(failing: int, failed: int, limits: AlertSettings) -> Observation:
    """Observe VMs that fail their checks now, and those that were ready and failed lately."""
    severity: Severity | None = "warning" if failing + failed else None
    lately = _minutes(limits.failed_boots_seconds)
    message = f"VMs failing their health checks: {failing}; failed in the last {lately}: {failed}"
    return Observation(HOST, message, float(failing + failed), severity, severity)


def observe_deployments(failed: tuple[str, str] | None) -> Observed:
    """Observe the newest deployment: its id and status if it failed."""
    return {"deploy_failed": [deploy_observation(*failed)] if failed else []}


def deploy_observation(deployment_id: str, status: str) -> Observation:
    severity: Severity = "critical" if status == "rollback-failed" else "warning"
    message = f"deployment {deployment_id} did not succeed: {status}; ./inv deployments shows why"
    return Observation(deployment_id, message, None, severity, severity)


def observe_certificate(expires_at: datetime | None, at: datetime) -> Observed:
    """Observe the controller's own TLS certificate; `None` where it has none."""
    if expires_at is None:
        return {"certificate": [all_clear(HOST, "the controller has no certificate of its own")]}
    return {"certificate": [certificate_observation(expires_at, at)]}


def certificate_observation(expires_at: datetime, at: datetime) -> Observation:
    days = (expires_at - at) / timedelta(days=1)
    severity: Severity | None = None
    if days <= CERTIFICATE_WARNING_DAYS:
        severity = "critical" if days <= CERTIFICATE_CRITICAL_DAYS else "warning"
    verb = "expires" if days > 0 else "expired"
    message = f"the controller's TLS certificate {verb} on {expires_at:%Y-%m-%d %H:%M} UTC"
    return Observation(HOST, message, round(days, 2), severity, severity)


def observe_network(found: Iterable[NetworkDifference]) -> Observed:
    """Observe the VM network. An opened wall counts at once; something broken must last."""
    found = tuple(found)
    return {
        "vm_isolation": _by_part([each for each in found if each.opens]),
        "vm_network": _by_part([each for each in found if not each.opens]),
    }


def observe_no_network_report(why: str, *, is_there: bool = True) -> Observed:
    """Observe that there is no report about the VM network, so that nobody knows its state.

    A host that has no report at all, as before its first deployment, gets no alert.
    """
    if not is_there:
        return {"vm_isolation": Unknown(why), "vm_network": Unknown(why)}
    message = f"the VM network is not being checked: {why}"
    return {
        "vm_isolation": Unknown(why),
        "vm_network": [Observation("watch", message, None, "warning", "critical")],
    }


def _by_part(found: Sequence[NetworkDifference]) -> list[Observation]:
    parts: dict[str, list[NetworkDifference]] = {}
    for each in found:
        parts.setdefault(each.part, []).append(each)
    observations = []
    for part, own in parts.items():
        severity: Severity = "critical" if "critical" in {e.severity for e in own} else "warning"
        message = "; ".join(each.text for each in own)[:MOST_MESSAGE_CHARACTERS]
        observations.append(Observation(part, message, None, severity, severity))
    return observations


def observe_webhooks(
    backlogs: Mapping[str, Backlog], settings: WebhookSettings, at: datetime
) -> Observed:
    """Observe each webhook endpoint: deliveries that keep failing, or have failed for good."""
    lasting = at - timedelta(seconds=settings.alert_seconds)
    found = []
    for each in settings.endpoints:
        backlog = backlogs.get(each.name, Backlog())
        since = backlog.failing_since
        since = since if since and since <= lasting else None
        found.append(webhooks_observation(each.name, backlog.waiting, since, backlog.failed, at))
    return {"webhooks": found}


def webhooks_observation(
    endpoint: str, waiting: int, failing_since: datetime | None, failed: int, at: datetime
) -> Observation:
    """Observe an endpoint.

    failing_since   None until its deliveries have been failing for `webhooks.alert_seconds`
    failed          deliveries that failed for good within a day
    """
    severity: Severity | None = "warning" if failing_since else None
    severity = "critical" if failed else severity
    problems = [f"{failed} deliveries failed for good within a day"] if failed else []
    if failing_since:
        hours = (at - failing_since) / timedelta(hours=1)
        problems.append(f"{waiting} deliveries are waiting, the oldest failing for {hours:.1f} h")
    text = " and ".join(problems) or "all deliveries succeeded"
    message = f"webhook endpoint {endpoint}: {text}"
    if problems:
        message += "; ./inv webhooks shows why"
    return Observation(endpoint, message, float(waiting + failed), severity, severity)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:g} min"

"""When an alert is raised, when it is cleared: rules, hysteresis and patience. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from polydev.controller.host.status import (
    Status,
    percent_text,
    status_of_temperature,
    temperature_text,
)
from polydev.controller.machines.hypervisor import TemplatesReport
from polydev.controller.model import Severity
from polydev.controller.settings import WARM_PERCENT, AlertRules

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
Key = tuple[str, str]  # rule and subject
HOST = "host"
CERTIFICATE_WARNING_DAYS = 14.0
CERTIFICATE_CRITICAL_DAYS = 3.0
MOST_SUBJECT_CHARACTERS = 200

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
_RANKS: Mapping[Severity | None, int] = {None: 0, "warning": 1, "critical": 2}


@dataclass(frozen=True)
class Observation:
    """What a rule saw of a subject.

    raises  the alert that this calls for
    keeps   the alert that it lets stand, if one stands: as severe or more, which is the hysteresis
    """

    subject: str
    message: str
    value: float | None
    raises: Severity | None
    keeps: Severity | None


# Of each rule that could look; what the others raised stays as it is.
Observed = Mapping[Rule, Iterable[Observation]]


@dataclass(frozen=True)
class Pending:
    """A change that must last: since when, and the least of it that lasted.

    `message` and `value` are those of the latest moment that called for just this severity.
    """

    severity: Severity | None
    since: datetime
    message: str
    value: float | None


@dataclass(frozen=True)
class Change:
    """Severity None clears the alert. `before` is what stood."""

    rule: Rule
    subject: str
    severity: Severity | None
    before: Severity | None
    message: str
    value: float | None

    @property
    def is_worse(self) -> bool:
        return _RANKS[self.severity] > _RANKS[self.before]

    @property
    def event(self) -> str:
        """Return its name in the log."""
        if self.severity is None:
            return "alert cleared"
        return "alert raised" if self.is_worse else "alert lowered"


def percent_observation(
    what: str, subject: str, value: float | None, limits: AlertRules
) -> Observation:
    """One that could not be measured (None) raises nothing, and lets stand what stands."""
    subject = subject[:MOST_SUBJECT_CHARACTERS]
    if value is None:
        return Observation(subject, percent_text(what, value), None, None, "critical")
    raises = _level(value, limits)
    keeps = _level(value + limits.hysteresis_percent, limits)
    message = percent_text(what, value)
    if keeps is not None and raises is None:
        cleared_percent = limits.warning_percent - limits.hysteresis_percent
        message += f"; the alert is cleared below {cleared_percent:g} %"
    return Observation(subject, message, value, raises, keeps)


def _level(percent: float, limits: AlertRules) -> Severity | None:
    if percent > limits.critical_percent:
        return "critical"
    return "warning" if percent >= limits.warning_percent else None


def temperature_observation(
    celsius: float | None, critical_celsius: float | None, limits: AlertRules
) -> Observation:
    """Observe the hottest sensor. Without its critical value nothing is raised.

    The hysteresis is percent of the critical value.
    """
    if celsius is None or critical_celsius is None:
        what = "is not there any more" if celsius is None else "names no critical value any more"
        return Observation(HOST, f"the temperature sensor {what}", celsius, None, None)
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


def failed_boots_observation(failed: int, limits: AlertRules) -> Observation:
    """Once raised, it stands until fewer than half as many are left in the time looked at."""
    return Observation(
        HOST,
        f"{failed} VMs failed to boot within {_minutes(limits.failed_boots_seconds)}",
        float(failed),
        raises="critical" if failed >= limits.failed_boots else None,
        keeps="critical" if failed * 2 >= limits.failed_boots else None,
    )


def not_resumed_observation(booted: int, reason: str, limits: AlertRules) -> Observation:
    """`booted` VMs were to be resumed from a template, and were not."""
    severity: Severity | None = "warning" if booted else None
    lately = _minutes(limits.failed_boots_seconds)
    message = f"{booted} VMs booted within {lately} that are usually resumed from a template"
    if reason:
        message += f"; the last one since {reason}"
    return Observation(HOST, message, float(booted), severity, severity)


def template_missing_observation(report: TemplatesReport | None) -> Observation:
    """Whether the golden image has no template; None where templates are off.

    One that is being made raises nothing.
    """
    if report is None:
        return Observation(HOST, "templates are off", None, None, None)
    if report.origin.template == report.wanted:
        return Observation(HOST, "the golden image has its template", None, None, None)
    message = f"golden image {report.golden[:12]} has no template, so "
    if report.origin.template:
        message += f"VMs are still resumed from image {report.origin.image_digest[:12]}"
    else:
        message += "VMs boot"
    message += f": {report.failure or 'nothing makes one'}"
    raises: Severity | None = None if report.step else "warning"
    return Observation(HOST, message, None, raises, "warning")


def no_slots_observation(total: int, held: int) -> Observation:
    severity: Severity | None = "warning" if total and held >= total else None
    message = f"{held} of {total} slots are in use"
    return Observation(HOST, message, float(total - held), severity, severity)


def unhealthy_vms_observation(failing: int, failed: int, limits: AlertRules) -> Observation:
    """`failing` VMs are up and fail their checks; `failed` were up and failed lately."""
    severity: Severity | None = "warning" if failing + failed else None
    lately = _minutes(limits.failed_boots_seconds)
    message = f"{failing} VMs fail their health checks, {failed} failed while up within {lately}"
    return Observation(HOST, message, float(failing + failed), severity, severity)


def deploy_observation(deployment_id: str, status: str) -> Observation:
    """Of the newest deployment, which did not succeed. A later one that does clears it."""
    severity: Severity = "critical" if status == "rollback-failed" else "warning"
    message = f"deployment {deployment_id} is {status}: ./inv deployments tells why"
    return Observation(deployment_id, message, None, severity, severity)


def certificate_observation(ends_at: datetime, at: datetime) -> Observation:
    """Of the controller's own certificate, which browsers take until then."""
    days = (ends_at - at) / timedelta(days=1)
    severity: Severity | None = None
    if days <= CERTIFICATE_WARNING_DAYS:
        severity = "critical" if days <= CERTIFICATE_CRITICAL_DAYS else "warning"
    word = "ends" if days > 0 else "ended"
    message = f"the certificate of the controller {word} on {ends_at:%Y-%m-%d %H:%M} UTC"
    return Observation(HOST, message, round(days, 2), severity, severity)


def webhooks_observation(
    endpoint: str, waiting: int, failing_since: datetime | None, failed: int, at: datetime
) -> Observation:
    """Observe an endpoint: deliveries that have been failing, or that failed for good within a day.

    failing_since   None until the deliveries have been failing for `webhooks.alert_seconds`
    """
    severity: Severity | None = "warning" if failing_since else None
    severity = "critical" if failed else severity
    told = [f"{failed} deliveries failed for good within a day"] if failed else []
    if failing_since:
        hours = (at - failing_since) / timedelta(hours=1)
        told.append(f"{waiting} deliveries wait, the oldest failing for {hours:.1f} h")
    message = f"webhooks to {endpoint}: {' and '.join(told) or 'all were delivered'}"
    if told:
        message += "; ./inv webhooks tells why"
    return Observation(endpoint, message, float(waiting + failed), severity, severity)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:g} min"


def wanted(seen: Observation | None, stands: Severity | None) -> Severity | None:
    """What should stand. A subject that is seen no more has no alert."""
    if seen is None:
        return None
    if _RANKS[seen.raises] >= _RANKS[stands]:
        return seen.raises
    return _least(stands, seen.keeps)


def _least(one: Severity | None, other: Severity | None) -> Severity | None:
    return min(one, other, key=_RANKS.__getitem__)


def changes_due(
    standing: Mapping[Key, Severity],
    pending: Mapping[Key, Pending],
    observed: Observed,
    at: datetime,
    limits: AlertRules,
) -> tuple[list[Change], dict[Key, Pending]]:
    """What is to be raised and cleared now, and what must last longer first."""
    changes: list[Change] = []
    waiting: dict[Key, Pending] = {}
    for rule, subject, seen in _subjects(standing, observed):
        stands = standing.get((rule, subject))
        want = wanted(seen, stands)
        if want == stands:
            continue
        message = seen.message if seen else f"{subject} is not there any more"
        now = Pending(want, at, message, seen.value if seen else None)
        wait = _lasted(pending.get((rule, subject)), now, stands)
        patience = limits.for_seconds if rule in LASTING else 0.0
        if at - wait.since < timedelta(seconds=patience):
            waiting[rule, subject] = wait
            continue
        changes.append(Change(rule, subject, wait.severity, stands, wait.message, wait.value))
    return changes, waiting


def _subjects(
    standing: Mapping[Key, Severity], observed: Observed
) -> Iterator[tuple[Rule, str, Observation | None]]:
    for rule, found in observed.items():
        seen = {each.subject: each for each in found}
        gone = {subject for of, subject in standing if of == rule} - seen.keys()
        for subject in (*seen, *sorted(gone)):
            yield rule, subject, seen.get(subject)


def _lasted(earlier: Pending | None, now: Pending, stands: Severity | None) -> Pending:
    """A change the other way begins anew; one the same way goes on, as far as both go."""
    rises = _RANKS[now.severity] > _RANKS[stands]
    if earlier is None or (_RANKS[earlier.severity] > _RANKS[stands]) != rises:
        return now
    nearer = min if rises else max
    least = nearer(now, earlier, key=lambda each: _RANKS[each.severity])  # of equals the first
    return replace(least, since=earlier.since)

"""Decide which alerts to raise and clear: hysteresis, and conditions that must last. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from polydev.controller.entities import Severity
from polydev.controller.host.alert_rules import (
    LASTING,
    Observation,
    Observed,
    Rule,
    Unknown,
    all_clear,
    gone_message,
)
from polydev.controller.settings import AlertSettings

Key = tuple[str, str]  # rule and subject
_RANKS: Mapping[Severity | None, int] = {None: 0, "warning": 1, "critical": 2}


@dataclass(frozen=True)
class PendingChange:
    """A change that must last first: since when it is due, and the least severe it was meanwhile.

    `message` and `value` are those of the latest moment that called for this severity.
    """

    severity: Severity | None
    since: datetime
    message: str
    value: float | None


@dataclass(frozen=True)
class AlertChange:
    """A change of one alert. Severity None clears it; `before` is its severity until now."""

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
        """Return the name of this change in the log."""
        if self.severity is None:
            return "alert_cleared"
        return "alert_raised" if self.is_worse else "alert_lowered"


def changes_due(
    standing: Mapping[Key, Severity],
    pending: Mapping[Key, PendingChange],
    observed: Observed,
    at: datetime,
    limits: AlertSettings,
) -> tuple[list[AlertChange], dict[Key, PendingChange]]:
    """Return the changes to make now, and those that must last longer first."""
    changes: list[AlertChange] = []
    waiting: dict[Key, PendingChange] = {}
    for rule, seen in _observations(standing, observed):
        stands = standing.get((rule, seen.subject))
        wanted = wanted_severity(seen, stands)
        if wanted == stands:
            continue
        new = PendingChange(wanted, at, seen.message, seen.value)
        change = _continued(pending.get((rule, seen.subject)), new, stands)
        patience = limits.for_seconds if rule in LASTING else 0.0
        if at - change.since < timedelta(seconds=patience):
            waiting[rule, seen.subject] = change
            continue
        changes.append(
            AlertChange(rule, seen.subject, change.severity, stands, change.message, change.value)
        )
    return changes, waiting


def wanted_severity(seen: Observation, stands: Severity | None) -> Severity | None:
    """Return the severity that an alert should have after an observation; None: no alert."""
    if _RANKS[seen.raises] >= _RANKS[stands]:
        return seen.raises
    return min(stands, seen.keeps, key=_RANKS.__getitem__)


def _observations(
    standing: Mapping[Key, Severity], observed: Observed
) -> Iterator[tuple[Rule, Observation]]:
    """Yield what was observed, and that standing alerts are clear whose subject is gone."""
    for rule, found in observed.items():
        if isinstance(found, Unknown):
            continue
        seen = {each.subject: each for each in found}
        gone = {subject for of, subject in standing if of == rule} - seen.keys()
        for each in seen.values():
            yield rule, each
        for subject in sorted(gone):
            yield rule, all_clear(subject, gone_message(rule, subject))


def _continued(
    earlier: PendingChange | None, new: PendingChange, stands: Severity | None
) -> PendingChange:
    """Continue a pending change in the same direction, as far as both go; else begin anew."""
    rises = _RANKS[new.severity] > _RANKS[stands]
    if earlier is None or (_RANKS[earlier.severity] > _RANKS[stands]) != rises:
        return new
    nearer = min if rises else max
    least = nearer(new, earlier, key=lambda each: _RANKS[each.severity])  # of equals the first
    return replace(least, since=earlier.since)

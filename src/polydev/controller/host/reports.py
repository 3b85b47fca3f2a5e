"""What is told of the past: samples and alerts, as the operators' endpoints say them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from polydev.controller.host.sample import Sample
from polydev.controller.host.shapes import Figures
from polydev.controller.model import Alert, Severity


class TimedSample(Sample):
    at: datetime


class History(Figures):
    samples: list[TimedSample]


class AlertReport(Figures):
    """`cleared_at` is null while the alert stands."""

    id: int
    rule: str
    subject: str
    severity: Severity
    message: str
    value: float | None
    raised_at: datetime
    cleared_at: datetime | None

    @classmethod
    def of(cls, alert: Alert) -> AlertReport:
        return cls(**asdict(alert))


class AlertsReport(Figures):
    standing: list[AlertReport]
    history: list[AlertReport]


def timed_sample(at: datetime, figures: Mapping[str, Any]) -> TimedSample:
    return TimedSample(**{**figures, "at": at})

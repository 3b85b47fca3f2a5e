"""What is told of the past: samples and alerts, as the operators' endpoints say them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime

from pydantic import Field

from polydev.controller.host.history import StartTimes, Timed, starts_by_span
from polydev.controller.host.sample import Sample
from polydev.controller.host.shapes import Figures
from polydev.controller.model import Alert, Severity
from polydev.controller.store.starts import How, SessionStart


class TimedSample(Sample):
    """`starts`: of sessions that became ready since the sample before, by how their VM came."""

    at: datetime
    starts: dict[How, StartTimes] = Field(default={})


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


def timed_samples(samples: Sequence[Timed], starts: Iterable[SessionStart]) -> list[TimedSample]:
    """Return samples with their times and the starts of their spans."""
    spans = starts_by_span([at for at, _ in samples], starts)
    return [
        TimedSample(**dict(sample), at=at, starts=span)
        for (at, sample), span in zip(samples, spans, strict=True)
    ]

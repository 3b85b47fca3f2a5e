"""Rows of the operators' pages of users: usage, quotas, days; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Literal

from polydev.controller.entities import Token, User
from polydev.controller.store.usage import Days
from polydev.controller.usage_accounting import DAY, USUAL_DAYS, Use, day_of, first_day, total
from polydev.controller.usage_quotas import NEAR, QuotaState
from polydev.controller.web.css_classes import Level
from polydev.controller.web.formatting import hours_text, size_text, time_text

TokenState = Literal["valid", "expired", "revoked"]


@dataclass(frozen=True)
class UseText:
    """Usage, formatted."""

    vm: str
    cpu: str
    traffic: str
    received: str
    sent: str
    sessions: int


@dataclass(frozen=True)
class QuotaBar:
    """A quota. `percent` is the length of its bar, at most 100."""

    quota: str
    used: str
    limit: str
    free_at: str
    percent: float
    level: Level


@dataclass(frozen=True)
class UserRow:
    """A row of the list of users."""

    user: User
    seen: str
    sessions: int
    today: UseText
    month: UseText
    bars: Sequence[QuotaBar]


@dataclass(frozen=True)
class DayBar:
    """A day of a chart. `percent` is its height relative to the day with the most VM time."""

    day: date
    use: UseText
    percent: float


def use_text(use: Use) -> UseText:
    return UseText(
        vm=hours_text(use.vm_seconds or None),
        cpu=hours_text(use.cpu_seconds or None),
        traffic=size_text(use.traffic_bytes or None),
        received=size_text(use.received_bytes or None),
        sent=size_text(use.sent_bytes or None),
        sessions=use.sessions,
    )


def user_row(
    user: User,
    days: Days,
    quotas: Iterable[QuotaState],
    sessions: int,
    seen: datetime | None,
    at: datetime,
) -> UserRow:
    """Return a row; `days` are the last USUAL_DAYS."""
    return UserRow(
        user=user,
        seen=time_text(seen),
        sessions=sessions,
        today=use_text(days.get(day_of(at), Use())),
        month=use_text(total(days.values())),
        bars=[quota_bar(each) for each in quotas],
    )


def quota_bar(state: QuotaState) -> QuotaBar:
    share = state.used / state.limit
    level: Level = "bad" if state.is_used_up else "warn" if share >= NEAR else "good"
    return QuotaBar(
        quota=state.quota,
        used=f"{state.used:.1f}",
        limit=f"{state.limit:g}",
        free_at=time_text(state.free_at),
        percent=round(100 * min(share, 1), 1),
        level=level,
    )


def day_bars(days: Mapping[date, Use], at: datetime) -> list[DayBar]:
    """Return each of the last USUAL_DAYS, oldest first, also days without usage."""
    shown = [first_day(at) + number * DAY for number in range(USUAL_DAYS)]
    most = max((days.get(day, Use()).vm_seconds for day in shown), default=0) or 1
    return [
        DayBar(
            day,
            use_text(use := days.get(day, Use())),
            round(100 * use.vm_seconds / most, 1),
        )
        for day in shown
    ]


def token_state(token: Token, at: datetime) -> TokenState:
    if token.revoked_at is not None:
        return "revoked"
    return "expired" if token.expires_at is not None and token.expires_at <= at else "valid"

"""Quotas of users: how much of each is used, and when it resets; pure.

A user who has used up a quota cannot start sessions until its day or month of UTC is over. Running
sessions are not ended.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Literal

from polydev.controller.settings import Quota
from polydev.controller.usage_accounting import Use, day_of, midnight, total
from polydev.errors import SessionError

QuotaName = Literal[
    "vm_hours_per_day", "vm_hours_per_month", "cpu_hours_per_day", "traffic_gib_per_day"
]
HOUR_SECONDS = 3600
GIB = 2**30
# From this share of a quota on, sessions have a warning.
NEAR = 0.9
_WORDS: Mapping[QuotaName, str] = {
    "vm_hours_per_day": "{used} of {limit} VM hours of today",
    "vm_hours_per_month": "{used} of {limit} VM hours of this month",
    "cpu_hours_per_day": "{used} of {limit} CPU hours of today",
    "traffic_gib_per_day": "{used} of {limit} GiB of traffic of today",
}


@dataclass(frozen=True)
class QuotaState:
    """A quota of a user. `free_at` is when it resets."""

    quota: QuotaName
    used: float
    limit: float
    free_at: datetime

    @property
    def left(self) -> float:
        return max(0.0, self.limit - self.used)

    @property
    def is_used_up(self) -> bool:
        return self.used >= self.limit

    @property
    def is_near(self) -> bool:
        return self.used >= NEAR * self.limit

    @property
    def free_again(self) -> str:
        return f"{self.free_at:%Y-%m-%d %H:%M} UTC"

    @property
    def words(self) -> str:
        figures = {"used": f"{self.used:.1f}", "limit": f"{self.limit:g}"}
        return _WORDS[self.quota].format(**figures)


class QuotaExceeded(SessionError):
    """A user has used up a quota. `members` are added to the problem details."""

    code = "quota-exceeded"

    def __init__(self, state: QuotaState, at: datetime) -> None:
        super().__init__(
            f"quota exceeded: {state.words} used",
            f"the quota resets at {state.free_again}; an administrator may raise "
            f"quotas.{state.quota}",
        )
        self.retry_after_seconds = max(1, math.ceil((state.free_at - at).total_seconds()))
        self.members = {
            "quota": state.quota,
            "used": round(state.used, 3),
            "limit": state.limit,
            "freeAt": f"{state.free_at:%Y-%m-%dT%H:%M:%SZ}",
        }


def month_of(at: datetime) -> date:
    """Return the first day of a time's month of UTC."""
    return day_of(at).replace(day=1)


def quota_states(quota: Quota, days: Mapping[date, Use], at: datetime) -> tuple[QuotaState, ...]:
    """Return the state of each quota that has a limit. `days` are those of this month."""
    today, month = day_of(at), month_of(at)
    of_today = days.get(today, Use())
    of_month = total(use for day, use in days.items() if day >= month)
    used: Mapping[QuotaName, float] = {
        "vm_hours_per_day": of_today.vm_seconds / HOUR_SECONDS,
        "vm_hours_per_month": of_month.vm_seconds / HOUR_SECONDS,
        "cpu_hours_per_day": of_today.cpu_seconds / HOUR_SECONDS,
        "traffic_gib_per_day": of_today.traffic_bytes / GIB,
    }
    tomorrow = today + timedelta(days=1)
    next_month = (month + timedelta(days=31)).replace(day=1)
    return tuple(
        QuotaState(name, figure, limit, midnight(next_month if "month" in name else tomorrow))
        for name, figure in used.items()
        if (limit := getattr(quota, name)) > 0
    )


def used_up(states: Iterable[QuotaState]) -> QuotaState | None:
    """Return the used-up quota that resets last; None if no quota is used up."""
    found = [each for each in states if each.is_used_up]
    return max(found, key=lambda each: each.free_at, default=None)

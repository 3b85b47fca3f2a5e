"""A session's usage between two readings of its VM, and the quotas on it."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polydev.controller.entities import Session, Vm
from polydev.controller.settings import Quota, Quotas
from polydev.controller.usage_accounting import (
    CounterReading,
    Use,
    complete,
    first_reading,
    total,
    use_between,
)
from polydev.controller.usage_quotas import QuotaExceeded, quota_states, used_up

NOON = datetime(2026, 11, 21, 12, tzinfo=timezone.utc)
TODAY = NOON.date()
USER = str(uuid4())
GIB = 2**30


def later(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def vm(**words: Any) -> Vm:
    of_noon = dict.fromkeys(("stage_at", "created_at", "started_at"), NOON)
    given: dict[str, Any] = {**of_noon, "state": "ready", "stage": "ready", **words}
    return Vm("vm", 2, "192.168.100.2", image_digest="", **given)


def session(**words: Any) -> Session:
    times = {"created_at": NOON, "changed_at": NOON, "expires_at": later(9999), **words}
    return Session("session", USER, "claude", "vm_created", "vm", **times)


def reading(seconds: float, *, paused: bool = False, cpu: float | None = None) -> CounterReading:
    return CounterReading("vm", later(seconds), paused, cpu, None, None)


def ran(last: CounterReading, new: CounterReading, of: Vm, its: Session | None = None) -> float:
    return total(use_between(last, new, of, its or session()).values()).vm_seconds


class TestTime:
    def test_running_time_of_a_vm_counts(self) -> None:
        assert ran(reading(10), reading(20), vm()) == 10

    def test_time_before_the_start_or_after_the_end_is_not_counted(self) -> None:
        assert ran(reading(0), reading(20), vm(started_at=later(15))) == 5
        assert ran(reading(0), reading(20), vm(started_at=None)) == 0
        over = session(ended_at=later(12))
        assert ran(reading(10), reading(20), vm(), over) == 2
        assert use_between(reading(20), reading(30), vm(), over) == {}

    def test_paused_time_is_not_counted(self) -> None:
        assert ran(reading(10), reading(20), vm(paused_at=later(13))) == 3
        paused = vm(paused_at=later(13))
        assert ran(reading(20, paused=True), reading(30, paused=True), paused) == 0
        assert ran(reading(30, paused=True), reading(40), vm()) == 0, "nobody knows since when"
        assert ran(reading(40), reading(50), vm()) == 10

    def test_pool_vm_counts_from_its_assignment(self) -> None:
        taken = vm(started_at=later(14))
        its = session(created_at=later(14))
        assert ran(reading(10, paused=True), reading(20), taken, its) == 6

    def test_older_reading_is_not_counted(self) -> None:
        assert use_between(reading(20, cpu=9), reading(20, cpu=3), vm(), session()) == {}
        assert use_between(reading(20, cpu=9), reading(10, cpu=3), vm(), session()) == {}

    def test_usage_is_split_by_utc_day(self) -> None:
        used = use_between(reading(0), reading(36 * 3600), vm(), session())
        hours = {day: use.vm_seconds / 3600 for day, use in used.items()}
        assert hours == {TODAY: 12, date(2026, 11, 22): 24}

    @given(st.lists(st.floats(0.01, 90_000), min_size=1, max_size=8))
    def test_sum_is_independent_of_the_reading_interval(self, steps: list[float]) -> None:
        found, last = [], reading(0)
        for step in steps:
            new = replace(last, at=last.at + timedelta(seconds=step))
            found.append(ran(last, new, vm()))
            last = new
        whole = (last.at - NOON).total_seconds()
        assert sum(found) == pytest.approx(whole)


class TestCounters:
    def test_counter_increase_is_counted(self) -> None:
        last = CounterReading("vm", later(0), False, 5.0, 100, 10)
        new = CounterReading("vm", later(10), False, 7.5, 160, 11)
        assert use_between(last, new, vm(), session()) == {TODAY: Use(10, 2.5, 60, 1)}

    def test_restarted_counter_counts_from_zero(self) -> None:
        used = use_between(reading(0, cpu=50), reading(10, cpu=3), vm(), session())
        assert used[TODAY].cpu_seconds == 3

    def test_unreadable_counter_is_counted_later(self) -> None:
        last, unread, new = reading(0, cpu=5), reading(10), reading(20, cpu=8)
        assert use_between(last, unread, vm(), session())[TODAY].cpu_seconds == 0
        kept = complete(last, unread)
        assert (kept.at, kept.cpu_seconds) == (unread.at, 5)
        assert use_between(kept, new, vm(), session())[TODAY].cpu_seconds == 3

    def test_first_reading_counts_only_usage_of_the_session(self) -> None:
        new = CounterReading("vm", later(10), False, 4.0, 10**9, 10**9)
        own, pooled = vm(), vm(created_at=later(-60))
        assert use_between(first_reading(own, session()), new, own, session()) == {
            TODAY: Use(10, 4.0)
        }
        assert use_between(first_reading(pooled, session()), new, pooled, session()) == {
            TODAY: Use(10)
        }


class TestQuotas:
    days = {  # noqa: RUF012
        date(2026, 10, 31): Use(vm_seconds=99 * 3600),
        date(2026, 11, 2): Use(vm_seconds=30 * 3600),
        TODAY: Use(vm_seconds=2 * 3600, cpu_seconds=1800, received_bytes=GIB, sent_bytes=GIB),
    }

    def test_quota_states_have_usage_and_reset_time(self) -> None:
        quota = Quota(
            vm_hours_per_day=4,
            vm_hours_per_month=32,
            cpu_hours_per_day=1,
            traffic_gib_per_day=8,
        )
        found = quota_states(quota, self.days, NOON)
        tomorrow = datetime(2026, 11, 22, tzinfo=timezone.utc)
        december = datetime(2026, 12, 1, tzinfo=timezone.utc)
        assert [(each.quota, each.used, each.left, each.free_at) for each in found] == [
            ("vm_hours_per_day", 2, 2, tomorrow),
            ("vm_hours_per_month", 32, 0, december),
            ("cpu_hours_per_day", 0.5, 0.5, tomorrow),
            ("traffic_gib_per_day", 2, 6, tomorrow),
        ]
        assert used_up(found) == found[1]

    def test_no_quota_states_without_limits(self) -> None:
        assert quota_states(Quota(), self.days, NOON) == ()
        assert used_up(()) is None

    def test_used_up_returns_the_quota_with_the_latest_reset(self) -> None:
        quota = Quota(vm_hours_per_day=1, vm_hours_per_month=1)
        state = used_up(quota_states(quota, self.days, NOON))
        assert state is not None
        assert state.quota == "vm_hours_per_month"
        refusal = QuotaExceeded(state, NOON)
        assert refusal.message == "quota exceeded: 32.0 of 1 VM hours of this month used"
        assert refusal.members["freeAt"] == "2026-12-01T00:00:00Z"
        assert refusal.retry_after_seconds == (9 * 24 + 12) * 3600

    def test_december_quota_resets_in_january(self) -> None:
        at = datetime(2026, 12, 31, 23, 59, 59, tzinfo=timezone.utc)
        (state,) = quota_states(Quota(vm_hours_per_month=1), {}, at)
        assert state.free_at == datetime(2027, 1, 1, tzinfo=timezone.utc)

    def test_user_quota_overrides_role_and_default(self) -> None:
        quotas = Quotas.model_validate(
            {
                "vm_hours_per_day": 8,
                "cpu_hours_per_day": 4,
                "by_role": {"admin": {"vm_hours_per_day": 0}},
                "by_user": {USER: {"cpu_hours_per_day": 9}},
            }
        )
        other = str(uuid4())
        assert quotas.of(other, "user") == Quota(vm_hours_per_day=8, cpu_hours_per_day=4)
        assert quotas.of(other, "admin") == Quota(vm_hours_per_day=0, cpu_hours_per_day=4)
        assert quotas.of(USER, "admin") == Quota(vm_hours_per_day=0, cpu_hours_per_day=9)
        assert quotas.are_set
        assert not Quotas().are_set

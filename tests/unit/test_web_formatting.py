"""Texts of VMs, sessions and users on the operators' pages, as values."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from polydev.controller.entities import Session, Token, User, Vm
from polydev.controller.usage_accounting import USUAL_DAYS, Use
from polydev.controller.usage_quotas import QuotaState
from polydev.controller.web.formatting import NOTHING, duration_text, size_text, time_text
from polydev.controller.web.user_rows import day_bars, quota_bar, token_state, user_row
from polydev.controller.web.vm_rows import VmEntry, counted, vm_row

NOON = datetime(2026, 11, 21, 12, tzinfo=timezone.utc)
ADA = User("5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01", "user", "Ada", NOON)


def later(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def vm(**words: Any) -> Vm:
    given = {"state": "ready", "stage": "ready", "started_at": NOON, "created_at": NOON, **words}
    return Vm("vm", 2, "192.168.100.2", stage_at=NOON, image_digest="", **given)


def session(**words: Any) -> Session:
    given = {"state": "vm_created", "created_at": NOON, "expires_at": later(600), **words}
    return Session("session", ADA.id, "claude", vm_id="vm", changed_at=NOON, **given)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, NOTHING),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536 * 1024, "1.5 MiB"),
        (200 * 2**30, "200 GiB"),
        (3 * 2**50, "3072 TiB"),
    ],
)
def test_size_text_has_binary_units(count: int | None, text: str) -> None:
    assert size_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, NOTHING),
        (-3, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3599, "59 min"),
        (3 * 3600 + 300, "3 h 5 min"),
        (50 * 3600, "2 d 2 h"),
    ],
)
def test_duration_text_has_two_units(seconds: float | None, text: str) -> None:
    assert duration_text(seconds) == text


def test_times_are_shown_in_utc() -> None:
    there = NOON.astimezone(timezone(timedelta(hours=9)))
    assert (time_text(there), time_text(None)) == ("2026-11-21 12:00", NOTHING)


@pytest.mark.parametrize(
    ("of_vm", "of_session", "state", "level"),
    [
        ({}, {}, "vm_created", "good"),
        ({"failed_checks": 1}, {}, "vm_created", "warn"),
        ({"state": "starting"}, {"state": "vm_starting"}, "vm_starting", "warn"),
        ({"state": "stopping"}, {"state": "terminated", "ended_at": NOON}, "terminated", "over"),
        ({"state": "failed"}, {"state": "failed", "ended_at": NOON}, "failed", "bad"),
        ({"pooled": True}, None, "pooled", "good"),
        ({"pooled": True, "state": "creating"}, None, "priming", "warn"),
        ({"pooled": True, "state": "ended"}, None, "machine_ended", "over"),
        ({"pooled": True, "state": "failed", "reason": "x"}, None, "machine_failed", "bad"),
    ],
)
def test_vm_row_shows_state_and_level(
    of_vm: dict[str, Any], of_session: dict[str, Any] | None, state: str, level: str
) -> None:
    its = None if of_session is None else session(**of_session)
    row = vm_row(VmEntry(vm(**of_vm), its), NOON)
    assert (row.state, row.level) == (state, level)


def test_vm_row_shows_boot_clone_or_pool() -> None:
    clone = vm(template="7e")
    rows = [
        vm_row(VmEntry(*each), NOON)
        for each in (
            (vm(), session()),
            (clone, session()),
            (clone, session(created_at=later(1))),
            (replace(clone, pooled=True), None),
        )
    ]
    assert [row.start for row in rows] == ["boot", "clone", "pool", "pool"]


def test_vm_row_shows_user_and_time_left() -> None:
    known = vm_row(VmEntry(vm(paused_at=NOON), session(), ADA, viewers=2), later(300))
    assert (known.who, known.left, known.age, known.viewers) == ("Ada", "5 min", "5 min", 2)
    assert known.is_paused
    stranger = vm_row(VmEntry(vm(), session()), NOON)
    assert stranger.who == ADA.id[:8]
    over = vm_row(VmEntry(vm(), session(state="expired", ended_at=later(60))), later(300))
    assert (over.left, over.age) == ("", "1 min")
    assert (over.cpu, over.memory) == (NOTHING, NOTHING)


def test_counted_sums_sessions_pool_and_viewers() -> None:
    machines = [
        VmEntry(vm(), session(), viewers=3),
        VmEntry(vm(paused_at=NOON), session()),
        VmEntry(vm(state="stopping"), session(state="expired")),
        VmEntry(vm(pooled=True, paused_at=NOON)),
    ]
    found = counted({str(number): each for number, each in enumerate(machines)})
    assert found == {"sessions": 2, "paused": 1, "pooled": 1, "viewers": 3}


@pytest.mark.parametrize(
    ("used", "percent", "level"),
    [(0, 0, "good"), (7, 87.5, "good"), (7.2, 90, "warn"), (8, 100, "bad"), (99, 100, "bad")],
)
def test_quota_bar_has_percent_and_level(used: float, percent: float, level: str) -> None:
    bar = quota_bar(QuotaState("vm_hours_per_day", used, 8, NOON))
    assert (bar.percent, bar.level) == (percent, level)


def test_user_row_and_day_bars_show_usage() -> None:
    days = {NOON.date(): Use(3600, 60, 10, 5, 1), (NOON - timedelta(days=3)).date(): Use(7200)}
    row = user_row(ADA, days, (), 1, None, NOON)
    assert (row.today.vm, row.month.vm, row.today.traffic) == ("1.0 h", "3.0 h", "15 B")
    assert row.seen == NOTHING
    bars = day_bars(days, NOON)
    assert len(bars) == USUAL_DAYS
    assert [bar.percent for bar in bars[-4:]] == [100, 0, 0, 50]
    assert {bar.percent for bar in day_bars({}, NOON)} == {0}


def test_token_state_is_valid_expired_or_revoked() -> None:
    token = Token("id", ADA.id, "phone", NOON, None, None, None)
    assert token_state(token, NOON) == "valid"
    assert token_state(replace(token, expires_at=NOON), NOON) == "expired"
    assert token_state(replace(token, expires_at=later(1)), NOON) == "valid"
    assert token_state(replace(token, revoked_at=NOON), NOON) == "revoked"

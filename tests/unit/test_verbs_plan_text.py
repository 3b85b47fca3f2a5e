"""Plans as text: in full if short, by concern if long."""

from __future__ import annotations

import pytest

from polydev.deployment.pyinfra_process import Operation, Plan
from verbs.plan_text import MOST_LINES, WIDEST, plan_fields, plan_text

SAME = Operation("Bridge | /etc/b.network", False, ())
CHANGED = Operation("Slots | microvm-slot@2.service", True, ("- not active", "+ active"))


def test_short_plan_shows_each_difference() -> None:
    plan = Plan((SAME, CHANGED), ("tokens in plain text",))
    assert plan_text(plan).splitlines() == [
        "Slots | microvm-slot@2.service",
        "    - not active",
        "    + active",
        "warning: tokens in plain text",
        "1 of 2 operations would change the host",
    ]


@pytest.fixture
def long_plan() -> Plan:
    slots = [
        Operation(f"Slots | microvm-slot@{number}.service", True, ("- not active", "+ active"))
        for number in range(2, 2 + MOST_LINES)
    ]
    return Plan((*slots, Operation("SSH | ssh.service", True, ())))


def test_long_plan_has_one_line_per_concern(long_plan: Plan) -> None:
    slots, ssh, count = plan_text(long_plan).splitlines()
    assert slots.startswith(f"Slots  {MOST_LINES:>3}  microvm-slot@2.service, microvm-slot@3.ser")
    assert slots.endswith(".service, …")
    assert len(slots) <= WIDEST
    assert ssh == "SSH      1  ssh.service"
    changing = MOST_LINES + 1
    assert count.startswith(f"{changing} of {changing} operations would change the host")
    assert "--diff" in count


def test_long_plan_is_shown_in_full_on_request(long_plan: Plan) -> None:
    lines = plan_text(long_plan, show_diff=True).splitlines()
    assert len(lines) == 3 * MOST_LINES + 2
    assert "--diff" not in lines[-1]


def test_plan_fields_contain_every_difference(long_plan: Plan) -> None:
    fields = plan_fields(long_plan)
    assert fields["changes"] == len(fields["operations"]) == MOST_LINES + 1
    assert fields["operations"][0]["diff"] == ["- not active", "+ active"]

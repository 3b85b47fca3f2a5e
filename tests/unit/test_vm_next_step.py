"""The driver's decisions: the next step for a VM, and the meaning of its agent's answers."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from polydev.controller.entities import Session, Vm, now
from polydev.controller.machines.agent_answers import (
    AgentHealth,
    AgentLogin,
    agent_health,
    read_answer,
)
from polydev.controller.machines.boot_queue import Queued, boot_queue, memory_shortage
from polydev.controller.machines.cleanup import keeps_logs
from polydev.controller.machines.health_checks import VmHealthChecks
from polydev.controller.machines.hypervisor import Activity, SlotState
from polydev.controller.machines.vm_driver_timing import Intervals
from polydev.controller.machines.vm_next_step import (
    Answer,
    agent_problem,
    check_verdict,
    failed_units,
    has_live_heartbeat,
    is_idle,
    is_starting_again,
    next_step,
    stage_by_agent,
    wrong_vm,
)
from polydev.controller.session_and_vm_states import VmState
from polydev.errors import AgentUnreachable, ProtocolError
from polydev.vm.cpu_wait_time import CpuWait

AT = now()
OURS, OTHER = "ours", "other"


def vm(state: VmState = "starting", **words: Any) -> Vm:
    return Vm(OURS, 2, "192.168.100.2", state, "none", AT, "4f1d", AT, **words)


@pytest.mark.parametrize(
    ("states", "at_once", "waiting"),
    [
        ("", 1, {}),
        ("creating", 1, {}),
        ("creating creating creating", 1, {"1": 1, "2": 2}),
        ("starting creating ready creating stopping", 1, {"1": 1, "3": 2}),
        ("starting creating ready creating stopping", 2, {"3": 1}),
        ("starting starting creating", 1, {"2": 1}),
        ("ready ready stopping creating", 1, {}),
    ],
)
def test_boot_queue_starts_the_oldest_first(
    states: str, at_once: int, waiting: dict[str, int]
) -> None:
    held = [replace(vm(state), id=str(n)) for n, state in enumerate(states.split())]  # type: ignore[arg-type]
    assert {vm_id: each.place for vm_id, each in boot_queue(held, at_once).items()} == waiting


def test_boot_queue_waits_if_memory_is_short() -> None:
    held = [replace(vm(state), id=state) for state in ("ready", "starting", "creating")]
    shortage = memory_shortage(511.0, 512.0)
    assert boot_queue(held, 2, shortage) == {"creating": Queued(1, "the host is short of memory")}
    assert boot_queue(held, 2, memory_shortage(512.0, 512.0)) == {}


def health(**changed: Any) -> dict[str, Any]:
    return {
        "status": "ready",
        "stage": "ready",
        "components": {"vnc": {"ok": True, "detail": "works"}},
        "failing": [],
        "failed_units": [],
        "vm_id": OURS,
        **changed,
    }


def units(**active: str) -> dict[str, dict[str, str]]:
    """Return the agent's answer about these units of the desktop."""
    return {f"polydev-{name}.service": {"active": state} for name, state in active.items()}


def answer(**changed: Any) -> AgentHealth:
    return AgentHealth.model_validate(health(**changed))


@pytest.mark.parametrize(
    ("state", "activity", "named", "step"),
    [
        ("creating", "inactive", None, "start"),
        ("creating", "failed", OURS, "start"),
        ("creating", "inactive", OTHER, "start"),
        ("creating", "active", OURS, "launched"),
        ("creating", "activating", OURS, "launched"),
        ("creating", "active", OTHER, "evict"),
        ("creating", "active", None, "evict"),
        ("starting", "active", OURS, "follow"),
        ("starting", "failed", OURS, "ended"),
        ("starting", "inactive", None, "ended"),
        ("starting", "active", OTHER, "ended"),
        ("ready", "active", OURS, "check"),
        ("ready", "inactive", OURS, "ended"),
        ("stopping", "active", OURS, "end"),
        ("stopping", "active", OTHER, "end"),
        ("stopping", "inactive", None, "end"),
    ],
)
def test_next_step_for_vm_state_and_slot(
    state: VmState, activity: Activity, named: str | None, step: str
) -> None:
    assert next_step(vm(state), SlotState(2, activity, named), preserve=False) == step


@pytest.mark.parametrize(
    ("words", "activity", "step"),
    [
        ({"state": "creating"}, "inactive", "start"),
        ({"state": "starting"}, "active", "prime"),
        ({"state": "starting"}, "failed", "ended"),
        ({"state": "ready", "paused_at": AT}, "active", "leave"),
        ({"state": "ready", "paused_at": AT}, "failed", "ended"),
        ({"state": "stopping"}, "active", "end"),
    ],
)
def test_next_step_of_a_pool_vm(words: dict[str, Any], activity: Activity, step: str) -> None:
    pooled = vm(**words, pooled=True, template="7e")
    assert next_step(pooled, SlotState(2, activity, OURS), preserve=False) == step


@pytest.mark.parametrize(
    ("used_after", "step"), [(None, "leave"), (-1, "leave"), (0, "wake"), (1, "wake")]
)
def test_paused_vm_wakes_after_a_later_use(used_after: float | None, step: str) -> None:
    used_at = None if used_after is None else AT + timedelta(seconds=used_after)
    paused = vm("ready", paused_at=AT, used_at=used_at)
    assert next_step(paused, SlotState(2, "active", OURS), preserve=False) == step
    assert next_step(paused, SlotState(2, "failed", OURS), preserve=False) == "ended"


@pytest.mark.parametrize(
    ("ready", "used", "limit", "idle"),
    [
        (60, None, 60, True),
        (59, None, 60, False),
        (600, 59, 60, False),
        (600, 60, 60, True),
        (10, 70, 60, True),
        (600, None, 0, False),
        (None, None, 60, False),
    ],
)
def test_a_vm_is_idle_after_its_last_use(
    ready: float | None, used: float | None, limit: float, idle: bool
) -> None:
    ago = [None if each is None else AT - timedelta(seconds=each) for each in (ready, used)]
    assert is_idle(vm("ready", ready_at=ago[0], used_at=ago[1]), AT, limit) == idle


def test_pool_vms_count_but_do_not_delay_others() -> None:
    pooled = replace(vm("starting", pooled=True), id="p")
    waiting = [replace(vm("creating"), id=name) for name in "ab"]
    assert boot_queue([pooled, *waiting], 1) == {"b": Queued(1)}
    assert boot_queue([*waiting, replace(pooled, state="creating")], 2) == {}


def test_clone_is_identified_before_any_check() -> None:
    slot = SlotState(2, "active", OURS)
    assert next_step(vm("starting", template="7e"), slot, preserve=False) == "identify"
    assert next_step(vm("ready", template="7e"), slot, preserve=False) == "check"


@pytest.mark.parametrize(
    ("activity", "named", "reason", "step"),
    [
        ("active", OURS, "it failed", "leave"),
        ("active", OURS, None, "end"),
        ("active", OTHER, "it failed", "end"),
        ("failed", OURS, "it failed", "end"),
    ],
)
def test_only_a_failed_running_vm_is_preserved(
    activity: Activity, named: str, reason: str | None, step: str
) -> None:
    slot = SlotState(2, activity, named)
    assert next_step(vm("stopping", reason=reason), slot, preserve=True) == step


def test_answer_of_another_vm_is_refused() -> None:
    assert wrong_vm(vm(), answer()) is None
    assert wrong_vm(vm(), AgentUnreachable("silence")) is None
    assert wrong_vm(vm(), answer(vm_id=OTHER)) == "VM other answers at its address"
    assert "does not know its id" in (wrong_vm(vm(), answer(vm_id=None)) or "")
    assert len(wrong_vm(vm(), answer(vm_id="x" * 9999)) or "") < 200


def test_health_check_ends_a_vm_at_whose_address_another_one_answers() -> None:
    """Its login is left alone: the other VM would get the credentials."""
    failed = []

    async def fail(vm: Vm, reason: str) -> None:
        failed.append((vm.id, reason))

    agent: Any = SimpleNamespace(answer=lambda: answer(vm_id=OTHER))
    unused: Any = None
    checks = VmHealthChecks(unused, agent, unused, unused, unused, fail, unused)
    checked = vm(state="ready")
    slot = SlotState(checked.slot, "active", checked.id)
    assert asyncio.run(checks.check(checked, slot))
    assert failed == [(checked.id, "VM other answers at its address")]


def test_answer_of_the_agent_proves_the_network_stage() -> None:
    starting = answer(status="starting", stage="kernel")
    assert stage_by_agent(vm(), starting) == "network"
    assert stage_by_agent(vm(), answer(status="starting", stage="services")) == "services"
    assert stage_by_agent(vm(), answer()) == "ready"
    assert stage_by_agent(vm(), answer(vm_id=OTHER)) == "none"
    assert stage_by_agent(vm(), AgentUnreachable("silence")) == "none"
    assert stage_by_agent(vm(), None) == "none"


def test_agent_problem_is_short_and_printable() -> None:
    components = {"vnc": {"ok": False, "detail": "x" * 9999}}
    said = agent_problem(answer(status="failed", components=components, failing=["vnc", "browser"]))
    assert said.startswith("vnc: xxx")
    assert len(said) == 300
    assert agent_problem(answer(failing=["vnc", "browser"])) == "vnc: works; browser"
    hostile = {"vnc": {"ok": False, "detail": "a\x1b[2J\x00b\n"}}
    assert agent_problem(answer(components=hostile, failing=["vnc"])) == "vnc: a [2J b "
    assert agent_problem(AgentUnreachable("silence")) == "silence"
    assert agent_problem(None) == ""


def test_failed_units_are_unique_and_limited() -> None:
    assert failed_units(["a.service"], ["b.service", "a.service"]) == ["a.service", "b.service"]
    assert len(failed_units([], [f"{number}.service" for number in range(999)])) == 20
    assert len(failed_units([], ["x" * 9999])[0]) == 100


@pytest.mark.parametrize(
    ("before", "count", "protected", "verdict"),
    [
        (0, 0, False, "fine"),
        (2, 0, False, "fine"),
        (3, 0, False, "recovered"),
        (0, 1, False, "wait"),
        (2, 3, False, "fail"),
        (2, 3, True, "unhealthy"),
        (3, 4, True, "wait"),
        (3, 4, False, "fail"),
    ],
)
def test_check_verdict_by_failed_checks(
    before: int, count: int, protected: bool, verdict: str
) -> None:
    assert check_verdict(before, count, 3, protected=protected) == verdict


@pytest.mark.parametrize(
    ("count", "waited", "protected", "verdict"),
    [
        (3, 0, False, "fail"),
        (3, 5, False, "unhealthy"),
        (5, 5, False, "wait"),
        (6, 5, False, "fail"),
        (11, 10, False, "wait"),
        (12, 10, False, "fail"),
        (12, 10, True, "wait"),
    ],
)
def test_check_verdict_of_a_vm_that_waits_for_a_cpu(
    count: int, waited: float, protected: bool, verdict: str
) -> None:
    wait = CpuWait(10, waited)
    assert check_verdict(count - 1, count, 3, protected=protected, wait=wait) == verdict


@pytest.mark.parametrize(
    ("said", "starts"),
    [
        (
            answer(status="starting", failing=["browser"], services=units(browser="activating")),
            True,
        ),
        (answer(status="starting", failing=["browser"], services=units(browser="active")), False),
        (answer(status="starting", failing=["browser"]), False),
        (
            answer(status="starting", failing=["vnc", "browser"], services=units(vnc="active")),
            False,
        ),
        (answer(status="failed", failing=["browser"], services=units(browser="activating")), False),
        (answer(status="starting", services=units(browser="activating")), False),
        (answer(), False),
        (AgentUnreachable("silence"), False),
    ],
)
def test_closed_browser_counts_as_starting_again(said: Answer, starts: bool) -> None:
    assert is_starting_again(said) is starts


def test_heartbeat_is_live_for_its_time() -> None:
    session = Session("1", "2", "claude", "vm_created", OURS, AT, AT, AT, heartbeat_at=AT)
    assert has_live_heartbeat(session, AT + timedelta(seconds=29), 30)
    assert not has_live_heartbeat(session, AT + timedelta(seconds=30), 30)
    assert not has_live_heartbeat(None, AT, 30)


def test_logs_of_recently_failed_vms_are_kept() -> None:
    later = AT + timedelta(seconds=61)
    assert keeps_logs(vm("stopping"), 60, later)
    assert not keeps_logs(vm("ended", released_at=AT), 60, AT)
    assert keeps_logs(vm("failed", released_at=AT), 60, AT)
    assert not keeps_logs(vm("failed", released_at=AT), 60, later)


def test_retry_interval_grows_up_to_a_limit() -> None:
    intervals = Intervals(retry=0.5, retry_most=15)
    assert [intervals.retry_after(tries) for tries in (1, 2, 3, 6, 9999)] == [0.5, 1, 2, 15, 15]


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (500, b"", "answers 500"),
        (302, b"", "answers 302"),
        (200, b"<html>", "cannot be read"),
        (200, b"[]", "cannot be read"),
        (200, b'{"status": "ready"}', "stage"),
        (200, json.dumps(health(status="starting")).encode(), "but with the status starting"),
        (503, json.dumps(health()).encode(), "but with the status ready"),
    ],
)
def test_malformed_agent_answers_are_refused(status: int, body: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        agent_health(status, body)


def test_error_about_a_malformed_answer_is_short_and_printable() -> None:
    body = json.dumps(health(components={"\n\x1b[2J" + "x" * 9999: {"ok": "?"}})).encode()
    with pytest.raises(ProtocolError, match=r"cannot be read: components\.  \[2Jx+ ") as refused:
        agent_health(200, body)
    assert len(refused.value.message) < 300


def test_agent_health_parses_an_answer() -> None:
    said = agent_health(200, json.dumps(health(news="of a later agent")).encode())
    assert (said.status, said.vm_id, said.components["vnc"].ok) == ("ready", OURS, True)


@pytest.mark.parametrize(
    "url",
    [
        *("javascript:alert(1)", " https://x", "https://x/ a", "https://x:port", "https://x:99999"),
        *("https://x:0/", "https://known.example@evil/", "https://x\\evil/", "https://x/\u202e"),
    ],
)
def test_login_url_of_a_guest_must_be_a_plain_web_address(url: str) -> None:
    body = json.dumps({"status": "waiting", "url": url}).encode()
    with pytest.raises(ProtocolError, match="its agent's answer cannot be read: url"):
        read_answer(AgentLogin, body)


def test_login_urls_of_providers_are_accepted() -> None:
    url = (
        "https://claude.ai:443/oauth/authorize?code=true&client_id=9d-1&redirect_uri=http%3A%2F%2Fx"
    )
    body = json.dumps({"status": "waiting", "url": url}).encode()
    assert read_answer(AgentLogin, body).url == url

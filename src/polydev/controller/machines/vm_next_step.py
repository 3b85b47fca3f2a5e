"""Decide what to do next for a VM, from its row, its slot and its agent's answer. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from polydev.controller.entities import Session, Vm
from polydev.controller.machines.agent_answers import AgentHealth
from polydev.controller.machines.hypervisor import SlotState
from polydev.errors import AgentError
from polydev.vm.boot_stages import STAGES, Stage, printable
from polydev.vm.cpu_wait_time import NO_WAIT, CpuWait, verdict

Step = Literal[
    "evict",
    "start",
    "launched",
    "prime",
    "identify",
    "follow",
    "check",
    "wake",
    "ended",
    "leave",
    "end",
]
Answer = AgentHealth | AgentError
# How much of what components say may be part of a reason.
MAX_DETAIL_CHARACTERS = 300
MAX_FAILED_UNITS = 20
MAX_NAME_CHARACTERS = 100


def next_step(vm: Vm, slot: SlotState, *, preserve: bool) -> Step:
    """Return the next step for a VM that holds a slot.

    evict     stop another VM that runs in the slot
    launched  note that the VM runs: the process that started it ended before it could
    prime     let a clone of the pool run for a moment, so that it is fast afterwards
    identify  resume a clone and give it its identity
    ended     note that the VM has stopped by itself
    wake      resume a paused VM, because somebody uses it
    leave     do nothing: the VM is paused, or has failed and is kept for debugging
    """
    is_ours = slot.runs and slot.vm_id == vm.id
    if vm.state == "creating":
        if slot.runs:
            return "launched" if is_ours else "evict"
        return "start"
    if vm.state in ("starting", "ready"):
        if not is_ours:
            return "ended"
        if vm.state == "starting":
            return _start_of(vm)
        return _life_of(vm)
    return "leave" if preserve and vm.reason and is_ours else "end"


def _start_of(vm: Vm) -> Step:
    if vm.template is None:
        return "follow"
    return "prime" if vm.pooled else "identify"


def _life_of(vm: Vm) -> Step:
    if vm.paused_at is None:
        return "check"
    return "wake" if vm.used_at and vm.used_at >= vm.paused_at else "leave"


def is_idle(vm: Vm, at: datetime, pause_after_seconds: float) -> bool:
    """Whether nobody has used the VM for so long that it may be paused."""
    since = vm.used_at or vm.ready_at
    if not pause_after_seconds or since is None:
        return False
    return (at - since).total_seconds() >= pause_after_seconds


def wrong_vm(vm: Vm, answer: Answer) -> str | None:
    """Say which other VM answers at the VM's address; None if it is this one, or no answer came."""
    if isinstance(answer, AgentError) or answer.vm_id == vm.id:
        return None
    other = f"VM {answer.vm_id}" if answer.vm_id else "a VM that does not know its id"
    return f"{printable(other[:MAX_NAME_CHARACTERS])} answers at its address"


def stage_by_agent(vm: Vm, answer: Answer | None) -> Stage:
    """Return the stage that an answer of the agent proves: at least `network`, since it came."""
    if answer is None or isinstance(answer, AgentError) or wrong_vm(vm, answer):
        return "none"
    if answer.status == "ready":
        return "ready"
    return max("network", answer.stage, key=STAGES.index)


def is_well(answer: Answer) -> bool:
    return not isinstance(answer, AgentError) and answer.status == "ready"


def is_starting_again(answer: Answer) -> bool:
    """Whether the only problem is services that start again, as after the browser was closed.

    An agent that does not answer, or a service that runs but does not work, is another problem.
    """
    if isinstance(answer, AgentError) or answer.status != "starting":
        return False
    units = [answer.services.get(f"polydev-{name}.service") for name in answer.failing]
    return bool(units) and all(unit and unit.active == "activating" for unit in units)


def agent_problem(answer: Answer | None) -> str:
    """Return what is wrong with a VM according to its agent; empty if the agent was not asked."""
    if answer is None:
        return ""
    if isinstance(answer, AgentError):
        return printable(answer.message[:MAX_DETAIL_CHARACTERS])
    found = [
        f"{name}: {answer.components[name].detail}" if name in answer.components else name
        for name in answer.failing
    ]
    return printable("; ".join(found)[:MAX_DETAIL_CHARACTERS])


def failed_units(by_console: Iterable[str], by_agent: Iterable[str]) -> list[str]:
    """Return the units that could not be started, each once, limited to what can be shown."""
    both = (*by_console, *by_agent)
    names = dict.fromkeys(printable(name[:MAX_NAME_CHARACTERS]) for name in both)
    return list(names)[:MAX_FAILED_UNITS]


def has_live_heartbeat(session: Session | None, at: datetime, live_seconds: float) -> bool:
    """Whether somebody uses the session now."""
    if session is None or session.heartbeat_at is None:
        return False
    return (at - session.heartbeat_at).total_seconds() < live_seconds


CheckVerdict = Literal["fine", "recovered", "wait", "unhealthy", "fail"]


def check_verdict(
    before: int, count: int, limit: int, *, protected: bool, wait: CpuWait = NO_WAIT
) -> CheckVerdict:
    """Judge a health check: `before` it and with it, so many checks have failed in a row.

    A VM that waited for a CPU may fail more checks before it is ended, as with any deadline.

    unhealthy   returned once, when a VM that must not be ended reaches the limit
    """
    if count == 0:
        return "recovered" if before >= limit else "fine"
    if count < limit:
        return "wait"
    if not protected and verdict(wait.over(count), limit) != "in time":
        return "fail"
    return "unhealthy" if before < limit else "wait"


def with_details(reason: str, details: str) -> str:
    return f"{reason}: {details}" if details else reason

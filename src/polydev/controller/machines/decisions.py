"""What is to be done next for a VM, judged from what is true. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from polydev.controller.machines.agent_client import AgentHealth
from polydev.controller.machines.hypervisor import SlotState
from polydev.controller.model import Session, Vm
from polydev.errors import AgentError
from polydev.vm.boot_stages import STAGES, Stage, printable
from polydev.vm.cpu_wait import NO_WAIT, CpuWait, verdict

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
# Components speak for themselves; how much of it a reason may hold.
MAX_DETAIL_CHARACTERS = 300
MAX_FAILED_UNITS = 20
MAX_NAME_CHARACTERS = 100


def next_step(vm: Vm, slot: SlotState, *, preserve: bool) -> Step:
    """The one thing to do for a VM that holds a slot, which is in this state.

    evict     whoever runs in the slot, without holding it
    launched  note that it runs: it was started by a process that did not live to say so
    prime     let a clone of the pool run for a moment, so that it is quick afterwards
    identify  let a clone run on, as the VM that it is to be
    ended     note that it runs no more
    wake      let a VM run on that was paused, since somebody needs it
    leave     it is paused; or it has failed and is kept for debugging, until it ends
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
    """Whether nobody has used a VM that is up for so long that it may be paused."""
    since = vm.used_at or vm.ready_at
    if not pause_after_seconds or since is None:
        return False
    return (at - since).total_seconds() >= pause_after_seconds


def stranger(vm: Vm, answer: Answer) -> str | None:
    """Why what answers at the VM's address is not this VM; None where it is, or is silent."""
    if isinstance(answer, AgentError) or answer.vm_id == vm.id:
        return None
    other = f"VM {answer.vm_id}" if answer.vm_id else "a VM that does not know its id"
    return f"{printable(other[:MAX_NAME_CHARACTERS])} answers at its address"


def stage_by_agent(vm: Vm, answer: Answer | None) -> Stage:
    """How far a VM is by its own agent, which cannot be asked before there is a network."""
    if answer is None or isinstance(answer, AgentError) or stranger(vm, answer):
        return "none"
    if answer.status == "ready":
        return "ready"
    return max("network", answer.stage, key=STAGES.index)


def is_well(answer: Answer) -> bool:
    return not isinstance(answer, AgentError) and answer.status == "ready"


def is_starting_again(answer: Answer) -> bool:
    """Whether all that is wrong is that services are being started: as when the browser was closed.

    Silence, and a service that runs but does not work, are something else.
    """
    if isinstance(answer, AgentError) or answer.status != "starting":
        return False
    units = [answer.services.get(f"polydev-{name}.service") for name in answer.failing]
    return bool(units) and all(unit and unit.active == "activating" for unit in units)


def account(answer: Answer | None) -> str:
    """What is wrong with a VM by its agent, in words; empty where it was not asked."""
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
    """Units that could not be started, each once; no more and no longer than can be shown."""
    both = (*by_console, *by_agent)
    names = dict.fromkeys(printable(name[:MAX_NAME_CHARACTERS]) for name in both)
    return list(names)[:MAX_FAILED_UNITS]


def has_live_heartbeat(session: Session | None, at: datetime, live_seconds: float) -> bool:
    """Whether somebody is looking at the session's VM."""
    if session is None or session.heartbeat_at is None:
        return False
    return (at - session.heartbeat_at).total_seconds() < live_seconds


CheckVerdict = Literal["fine", "recovered", "wait", "unhealthy", "fail"]


def check_verdict(
    before: int, count: int, limit: int, *, protected: bool, wait: CpuWait = NO_WAIT
) -> CheckVerdict:
    """What a health check means: `before` and `count` checks have failed in a row.

    Of a VM that waited for a CPU meanwhile, more may fail before it is ended, as with any
    deadline.

    unhealthy   said once, when the limit is reached by a VM that may not be ended
    """
    if count == 0:
        return "recovered" if before >= limit else "fine"
    if count < limit:
        return "wait"
    if not protected and verdict(wait.over(count), limit) != "in time":
        return "fail"
    return "unhealthy" if before < limit else "wait"


def with_account(reason: str, details: str) -> str:
    return f"{reason}: {details}" if details else reason

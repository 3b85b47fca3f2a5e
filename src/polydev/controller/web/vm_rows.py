"""Rows of VMs and their sessions for the operators' pages; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from polydev.controller.entities import Session, User, Vm
from polydev.controller.host.sample import VmSample
from polydev.controller.session_and_vm_states import LIVE_VM_STATES
from polydev.controller.store.session_start_times import StartKind, start_kind
from polydev.controller.web.css_classes import Level
from polydev.controller.web.formatting import duration_text, percent_text, size_text

SHORT = 8


@dataclass(frozen=True)
class VmEntry:
    """A VM with its session, user and usage in the newest sample.

    session, user   None for a VM that no session has taken from the pool
    """

    vm: Vm
    session: Session | None = None
    user: User | None = None
    sample: VmSample | None = None
    viewers: int = 0


@dataclass(frozen=True)
class VmRow:
    """A row of the list. `state` and `start` are names of texts.

    stage   the stage of a VM that is starting; empty for others
    """

    id: str
    session_id: str | None
    user_id: str | None
    who: str | None
    provider: str | None
    state: str
    level: Level
    start: StartKind
    stage: str
    is_paused: bool
    age: str
    left: str
    cpu: str
    memory: str
    disk: str
    received: str
    sent: str
    viewers: int

    @property
    def is_live(self) -> bool:
        return self.level in ("good", "warn")


def vm_row(machine: VmEntry, at: datetime) -> VmRow:
    vm, session, used = machine.vm, machine.session, machine.sample
    ended_at = session.ended_at if session else vm.ended_at
    return VmRow(
        id=vm.id,
        session_id=session.id if session else None,
        user_id=session.user_id if session else None,
        who=who(machine.user, session),
        provider=session.provider if session else None,
        state=state_of(vm, session),
        level=level_of(vm, session),
        start=start_kind(vm.created_at, session.created_at if session else None, vm.template),
        stage=vm.stage if vm.state == "starting" and vm.stage != "none" else "",
        is_paused=vm.paused_at is not None and vm.state in LIVE_VM_STATES,
        age=duration_text(((ended_at or at) - _begun(vm, session)).total_seconds()),
        left=_left(session, at),
        cpu=percent_text(used.cpu_percent if used else None),
        memory=size_text(used.memory_bytes if used else None),
        disk=size_text(used.disk_bytes if used else None),
        received=size_text(used.received_bytes if used else None),
        sent=size_text(used.sent_bytes if used else None),
        viewers=machine.viewers,
    )


def who(user: User | None, session: Session | None) -> str | None:
    """Return the user's name, or the beginning of the id."""
    if user is not None and user.name:
        return user.name
    return session.user_id[:SHORT] if session else None


def state_of(vm: Vm, session: Session | None) -> str:
    """Return the session's state; without a session `pooled`, `priming` or the VM's `machine_…`."""
    if session is not None:
        return session.state
    if vm.is_for_sessions:
        return "pooled" if vm.state == "ready" else "priming"
    return f"machine_{vm.state}"


def level_of(vm: Vm, session: Session | None) -> Level:
    if session is not None and session.state == "failed":
        return "bad"
    if session is None and vm.reason is not None:
        return "bad"
    if vm.state not in LIVE_VM_STATES or (session is not None and not session.is_live):
        return "over"
    return "good" if vm.state == "ready" and not vm.failed_checks else "warn"


def _begun(vm: Vm, session: Session | None) -> datetime:
    return session.created_at if session else vm.created_at


def _left(session: Session | None, at: datetime) -> str:
    if session is None or not session.is_live:
        return ""
    return duration_text((session.expires_at - at).total_seconds())


def counted(machines: Mapping[str, VmEntry]) -> Mapping[str, int]:
    """Return the counts for the line above the list."""
    found = machines.values()
    return {
        "sessions": sum(each.session is not None and each.session.is_live for each in found),
        "paused": sum(each.vm.paused_at is not None and not each.vm.pooled for each in found),
        "pooled": sum(each.vm.is_for_sessions for each in found),
        "viewers": sum(each.viewers for each in found),
    }

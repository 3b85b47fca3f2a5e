"""One sample of the host: its measurements, its slots, and what VMs in them use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, Field

from polydev.controller.entities import Session, Vm
from polydev.controller.host.system_status import DiskStatus, FrozenModel, SystemStatus
from polydev.controller.host.vm_usage import VmUsage
from polydev.controller.session_and_vm_states import LIVE_SESSION_STATES, LIVE_VM_STATES

# States in which a VM holds a slot.
HELD_STATES = (*LIVE_VM_STATES, "stopping")

BY_INTERFACE = "bytes by interface, of all but the loopback, those of VMs included"


class VmSample(FrozenModel):
    """The usage of one VM; null where it could not be measured."""

    vm_id: str
    slot: int
    cpu_seconds: float | None
    cpu_percent: float | None
    memory_bytes: int | None
    disk_bytes: int | None
    received_bytes: int | None
    sent_bytes: int | None


class SlotCounts(FrozenModel):
    """The number of slots, and of those that a VM holds.

    pooled  of those held: by a VM of the pool, which waits for a session
    primed  of those pooled: by a VM that is paused and ready, so that a session starts at once
    """

    total: int
    held: int
    pooled: int = 0
    primed: int = 0


class Sample(FrozenModel):
    """The host at one time, in percent, bytes, degrees Celsius and seconds."""

    # Samples that another release stored may have more fields.
    model_config = ConfigDict(frozen=True, extra="ignore")

    cpu: float | None = None
    memory: float | None = None
    disk: dict[str, float] = Field(default={}, description="percent by mount")
    load_average: list[float] | None = None
    uptime: float | None = None
    temperature: float | None = None
    temperature_critical: float | None = Field(
        default=None, description="the critical value that the sensor names"
    )
    rx_bytes: dict[str, int] = Field(default={}, description=BY_INTERFACE)
    tx_bytes: dict[str, int] = Field(default={}, description=BY_INTERFACE)
    slots: SlotCounts | None = Field(
        default=None, description="null if the database did not answer"
    )
    sessions: dict[str, int] = Field(default={}, description="live ones by state")
    vms: dict[str, int] = Field(default={}, description="live ones by state")
    vm: list[VmSample] = Field(default=[])
    unavailable: dict[str, str] = Field(
        default={}, description="what could not be measured, and why"
    )


@dataclass(frozen=True)
class Workload:
    """VMs and sessions of the host, as the database has them.

    held        VMs that hold a slot
    live        sessions that are not over
    failed_boots, failed_while_up   VMs that failed lately, before and after they were ready
    not_resumed how many VMs booted lately instead of being resumed; the newest one's reason
    used        what VMs use, by id
    """

    held: Sequence[Vm]
    live: Sequence[Session]
    failed_boots: int
    failed_while_up: int
    used: Mapping[str, VmUsage]
    not_resumed: tuple[int, str] = (0, "")


def sample_of(system: SystemStatus, slots: Collection[int], workload: Workload | None) -> Sample:
    """Return a sample; `workload` is None where the database did not answer."""
    interfaces = [each for each in system.network.interfaces if each.name != "lo"]
    return Sample(
        cpu=system.cpu.usage,
        memory=system.memory.percent,
        disk={each.mount: each.percent for each in system.disk if each.percent is not None},
        load_average=system.load_average,
        uptime=system.uptime,
        temperature=system.temperature.current if system.temperature else None,
        temperature_critical=system.temperature.critical if system.temperature else None,
        rx_bytes={each.name: each.rx_bytes for each in interfaces},
        tx_bytes={each.name: each.tx_bytes for each in interfaces},
        unavailable=system.unavailable | _unmeasured(system.disk),
        **(_workload_fields(slots, workload) if workload else {}),
    )


def _workload_fields(slots: Collection[int], workload: Workload) -> dict[str, Any]:
    held = workload.held
    return {
        "slots": SlotCounts(
            total=len(slots),
            held=sum(each.slot in slots for each in held),
            pooled=sum(each.slot in slots and each.is_for_sessions for each in held),
            primed=sum(each.slot in slots and each.is_primed for each in held),
        ),
        "sessions": _counts(LIVE_SESSION_STATES, (each.state for each in workload.live)),
        "vms": _counts(HELD_STATES, (each.state for each in held)),
        "vm": [
            _vm_sample(each, workload.used[each.id]) for each in held if each.id in workload.used
        ],
    }


def _unmeasured(disks: Iterable[DiskStatus]) -> dict[str, str]:
    return {disk_key(each.mount): each.detail or "" for each in disks if each.percent is None}


def disk_key(mount: str) -> str:
    """Return the key in `unavailable` of one filesystem."""
    return f"disk {mount}"


def _counts(states: Iterable[str], found: Iterable[str]) -> dict[str, int]:
    counted = Counter(found)
    return {state: counted[state] for state in dict.fromkeys((*states, *counted))}


def _vm_sample(vm: Vm, used: VmUsage) -> VmSample:
    return VmSample(
        vm_id=vm.id, slot=vm.slot, **used.model_dump(by_alias=False, exclude={"unavailable"})
    )

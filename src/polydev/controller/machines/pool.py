"""The warm pool: VMs that were resumed, ran for a moment and are paused until a session takes one.

    held VMs, settings, template of new VMs, free memory -> pool_step -> add one, end one, or wait

`vm_lifecycle` moves the VMs of the pool on as all others; this module decides how many there are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import psutil
import structlog

from polydev.controller.entities import Vm
from polydev.controller.machines.hypervisor import Hypervisor, Origin
from polydev.controller.machines.vm_driver_dependencies import Dependencies
from polydev.controller.settings import ControllerSettings, PoolSettings
from polydev.errors import Error

log = structlog.stdlib.get_logger(__name__)

# Memory of a VM while it is primed. Without this reserve, priming could make the host end VMs.
VM_MIB = 256
MIB = 1 << 20
FIRST_PAUSE_SECONDS = 5.0


def free_memory_mib() -> float:
    """Return the memory that programs of the host could have now without swapping."""
    return psutil.virtual_memory().available / MIB


@dataclass(frozen=True)
class PoolStep:
    """The next step for the pool, and why; `vm` is the one to end."""

    action: Literal["add", "end", "wait"]
    why: str
    vm: Vm | None = None


def pool_step(
    held: Iterable[Vm],
    pool: PoolSettings,
    *,
    slots: int,
    template: str | None,
    free_memory_mib: float,
) -> PoolStep:
    """Return the next step towards a full pool.

    held        VMs that hold a slot
    template    from which new VMs are resumed; None if they boot
    """
    vms = list(held)
    pooled = [vm for vm in vms if vm.is_for_sessions]
    if template and (old := [vm for vm in pooled if vm.template != template]):
        return PoolStep("end", "it was made from an older template", old[0])
    if len(pooled) > pool.size:
        return PoolStep("end", "the pool has more VMs than it should", pooled[-1])
    if pooled and free_memory_mib < pool.least_free_memory_mib:
        return PoolStep("end", f"the host has {free_memory_mib:.0f} MiB of memory left", pooled[-1])
    if len(pooled) == pool.size:
        return PoolStep("wait", "the pool is full")
    if template is None:
        return PoolStep("wait", "there is no template to resume them from")
    if slots - len(vms) <= pool.spare_slots:
        return PoolStep("wait", "all other slots are in use, or reserved for sessions")
    if free_memory_mib < pool.least_free_memory_mib + VM_MIB:
        return PoolStep("wait", f"the host has {free_memory_mib:.0f} MiB of memory left")
    if any(vm.state in ("creating", "starting") for vm in vms):
        return PoolStep("wait", "another VM is starting")
    return PoolStep("add", "there is room for one more")


@dataclass(frozen=True)
class PoolState:
    """The pool now.

    size        how many VMs should wait
    held        all VMs that hold a slot
    origin      from what new VMs are made; None if that is unknown, or if VMs are not resumed
    step        the next step
    """

    size: int
    held: Sequence[Vm]
    origin: Origin | None
    step: PoolStep

    @property
    def primed(self) -> int:
        return sum(vm.is_primed for vm in self.held)

    @property
    def priming(self) -> int:
        return sum(vm.is_for_sessions for vm in self.held) - self.primed


async def pool_state(
    settings: ControllerSettings,
    held: Sequence[Vm],
    hypervisor: Hypervisor | None,
    memory: Callable[[], float] = free_memory_mib,
) -> PoolState:
    """Read templates and memory. Any process may; only the leader takes the step."""
    resuming = hypervisor if settings.templates else None
    pool = settings.pool if resuming else PoolSettings(size=0)
    origin = await _origin(resuming) if resuming else None
    step = pool_step(
        held,
        pool,
        slots=len(settings.slots),
        template=origin.template if origin else None,
        free_memory_mib=await asyncio.to_thread(memory),
    )
    if not resuming and step.action == "wait":
        step = replace(step, why="this host does not resume VMs from templates")
    return PoolState(pool.size, held, origin, step)


async def _origin(hypervisor: Hypervisor) -> Origin | None:
    try:
        return (await hypervisor.templates()).origin
    except Error as error:
        log.debug("pool_without_template", problem=error.message)
        return None


class Pool:
    """Fills the pool of this host, one VM at a time, as far as the host allows."""

    def __init__(self, deps: Dependencies) -> None:
        self._deps = deps
        self._seen_failed: set[str] = set()
        self._failures = 0
        self._next_at = 0.0

    async def run(self, held: Sequence[Vm]) -> None:
        """Take one step; `held` are the VMs that hold a slot. May be repeated at any time."""
        deps = self._deps
        state = await pool_state(deps.settings, held, deps.hypervisor, deps.free_memory_mib)
        self._note_failures(state.held)
        deps.metrics.pool.labels("primed").set(state.primed)
        deps.metrics.pool.labels("priming").set(state.priming)
        step, origin = state.step, state.origin
        if step.action == "end" and step.vm:
            log.info("pool_drained", vm_id=step.vm.id, why=step.why)
            await deps.vms.drain(step.vm.id)
        if step.action == "add" and origin and origin.template and self._may_add():
            spare = deps.settings.pool.spare_slots
            made = await deps.vms.add_pooled(origin.image_digest, origin.template, spare)
            if made is not None:
                log.info("pool_filled", vm_id=made.id, slot=made.slot)

    def _may_add(self) -> bool:
        return asyncio.get_running_loop().time() >= self._next_at

    def _note_failures(self, held: Iterable[Vm]) -> None:
        """Double the pause before the next VM is made with each VM of the pool that failed."""
        pooled = [vm for vm in held if vm.pooled]
        failed = {vm.id for vm in pooled if vm.reason is not None}
        if any(vm.state == "ready" for vm in pooled):
            self._failures = 0
        for _ in failed - self._seen_failed:
            self._failures += 1
            pause = FIRST_PAUSE_SECONDS * 2.0 ** min(self._failures - 1, 30)
            most = self._deps.intervals.pool_retry_most
            self._next_at = asyncio.get_running_loop().time() + min(pause, most)
        self._seen_failed = failed

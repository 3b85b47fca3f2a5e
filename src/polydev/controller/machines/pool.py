"""The warm pool: VMs that were resumed, ran for a moment and are paused until a session takes one.

    held VMs, settings, template of new VMs, free memory -> pool_step -> add one, end one, or wait

Each VM of the pool is moved on as all others are (`tending`); here is decided how many there are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import psutil
import structlog

from polydev.controller.machines.hypervisor import Origin
from polydev.controller.machines.tending import Means
from polydev.controller.model import Vm
from polydev.controller.settings import PoolSettings
from polydev.errors import Error

log = structlog.stdlib.get_logger(__name__)

MIB = 1 << 20
# What a VM of the pool takes while it is primed; so that one does not end for the next.
VM_MIB = 256
FIRST_PAUSE_SECONDS = 5.0


@dataclass(frozen=True)
class PoolStep:
    """What is to be done, and why, in words. `vm`: which one ends."""

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
    template    what new VMs are resumed from; None where they boot
    """
    vms = list(held)
    pooled = [vm for vm in vms if vm.is_for_sessions]
    if template and (old := [vm for vm in pooled if vm.template != template]):
        return PoolStep("end", "it was made from an older template", old[0])
    if len(pooled) > pool.size:
        return PoolStep("end", "the pool is to be smaller", pooled[-1])
    if pooled and free_memory_mib < pool.least_free_memory_mib:
        return PoolStep("end", f"the host has {free_memory_mib:.0f} MiB of memory left", pooled[-1])
    if len(pooled) == pool.size:
        return PoolStep("wait", "it is full")
    if template is None:
        return PoolStep("wait", "there is no template to make them from")
    if slots - len(vms) <= pool.spare_slots:
        return PoolStep("wait", "the other slots are taken, or kept for sessions")
    if free_memory_mib < pool.least_free_memory_mib + VM_MIB:
        return PoolStep("wait", f"the host has {free_memory_mib:.0f} MiB of memory left")
    if any(vm.state in ("creating", "starting") for vm in vms):
        return PoolStep("wait", "another VM starts")
    return PoolStep("add", "there is room for one more")


class Pool:
    """Keeps the pool of this host as large as it can be."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._seen_failed: set[str] = set()
        self._failures = 0
        self._next_at = 0.0

    async def run(self) -> None:
        """Take one step. May be repeated at any time."""
        settings = self._means.settings
        held = await self._means.vms.held()
        self._note_failures(held)
        self._count(held)
        origin = await self._origin()
        step = pool_step(
            held,
            settings.pool if settings.templates else PoolSettings(size=0),
            slots=len(settings.slots),
            template=origin.template if origin else None,
            free_memory_mib=await asyncio.to_thread(free_memory_mib),
        )
        if step.action == "end" and step.vm:
            log.info("pool_drained", vm_id=step.vm.id, why=step.why)
            await self._means.vms.drain(step.vm.id)
        if step.action == "add" and origin and origin.template and self._may_add():
            spare = settings.pool.spare_slots
            made = await self._means.vms.add_pooled(origin.image_digest, origin.template, spare)
            if made is not None:
                log.info("pool_filled", vm_id=made.id, slot=made.slot)

    async def _origin(self) -> Origin | None:
        """What new VMs are made of; None where they boot."""
        if not self._means.settings.templates:
            return None
        try:
            return (await self._means.hypervisor.templates()).origin
        except Error as error:
            log.debug("pool_without_template", problem=error.message)
            return None

    def _may_add(self) -> bool:
        return asyncio.get_running_loop().time() >= self._next_at

    def _note_failures(self, held: Iterable[Vm]) -> None:
        """After each VM of the pool that failed, wait twice as long before the next is made."""
        pooled = [vm for vm in held if vm.pooled]
        failed = {vm.id for vm in pooled if vm.reason is not None}
        if any(vm.state == "ready" for vm in pooled):
            self._failures = 0
        for _ in failed - self._seen_failed:
            self._failures += 1
            pause = FIRST_PAUSE_SECONDS * 2.0 ** min(self._failures - 1, 30)
            most = self._means.pace.pool_retry_most
            self._next_at = asyncio.get_running_loop().time() + min(pause, most)
        self._seen_failed = failed

    def _count(self, held: Iterable[Vm]) -> None:
        pooled = [vm for vm in held if vm.is_for_sessions]
        primed = sum(vm.state == "ready" for vm in pooled)
        pool = self._means.figures.pool
        pool.labels("primed").set(primed)
        pool.labels("priming").set(len(pooled) - primed)


def free_memory_mib() -> float:
    """Memory that programs could have now without swapping."""
    return psutil.virtual_memory().available / MIB

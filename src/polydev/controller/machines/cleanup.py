"""Clean up what no VM's own lifecycle removes: compare database rows, running units and files."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable
from datetime import datetime, timedelta

import structlog

from polydev.controller.entities import Vm
from polydev.controller.machines.vm_driver_dependencies import Dependencies
from polydev.controller.store.sessions import KEPT_SESSION_EVENTS
from polydev.errors import VmError

log = structlog.stdlib.get_logger(__name__)

# A first run with years of sessions to delete must leave time for the rest.
BATCH = 100
MOST_BATCHES = 20


class SlotLocks(defaultdict[int, asyncio.Lock]):
    """One lock for each slot; hold it to start or stop something there."""

    def __init__(self) -> None:
        super().__init__(asyncio.Lock)


class Cleanup:
    """A failure of one part does not stop the others. Every part may be repeated."""

    def __init__(self, deps: Dependencies, locks: SlotLocks) -> None:
        self._deps = deps
        self._locks = locks
        self._pruned_at: float | None = None

    async def run(self) -> None:
        """Run all parts once."""
        await self._guarded("database", self._repair_database())
        await self._guarded("orphans", self._stop_orphans())
        await self._guarded("folders", self._discard_folders())
        await self._guarded("old rows", self._prune())

    async def _guarded(self, what: str, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception as error:
            log.warning("cleanup_failed", part=what, exc_info=error)

    async def _repair_database(self) -> None:
        for repair in await self._deps.vms.repair():
            self._deps.metrics.cleaned_up.inc()
            log.warning("database_repaired", what=repair)

    async def _stop_orphans(self) -> None:
        states = await self._deps.hypervisor.slots()
        # Read after the slots: a VM holds its slot before it runs.
        held = {vm.slot for vm in await self._deps.vms.held()}
        for slot, state in states.items():
            if state.activity != "inactive" and slot not in held:
                await self._guarded(f"slot {slot}", self._stop_orphan(slot, state.vm_id))

    async def _stop_orphan(self, slot: int, vm_id: str | None) -> None:
        async with self._locks[slot]:
            # A VM may have got the slot meanwhile; its lifecycle stops what runs there.
            if slot in {vm.slot for vm in await self._deps.vms.held()}:
                return
            self._deps.metrics.cleaned_up.inc()
            log.warning("orphan_stopped", slot=slot, vm_id=vm_id)
            await self._deps.hypervisor.stop(slot)

    async def _discard_folders(self) -> None:
        hypervisor = self._deps.hypervisor
        states = await hypervisor.slots()
        running = {(slot, state.vm_id) for slot, state in states.items() if state.runs}
        folders = await hypervisor.folders()
        held = {vm.id for vm in await self._deps.vms.held()}
        for slot, vm_id in sorted(folders):
            if vm_id not in held and (slot, vm_id) not in running:
                await self._guarded(f"folder of {vm_id}", self._discard(slot, vm_id))

    async def _discard(self, slot: int, vm_id: str) -> None:
        if not await self._keeps_logs(vm_id):
            log.info("folder_discarded", slot=slot, vm_id=vm_id)
            await self._deps.hypervisor.discard(slot, vm_id, keep_logs=False)

    async def _keeps_logs(self, vm_id: str) -> bool:
        try:
            vm = await self._deps.vms.get(vm_id)
        except VmError:
            return False
        return keeps_logs(vm, self._deps.settings.keep_failed_seconds, self._deps.clock())

    async def _prune(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._pruned_at is not None and now - self._pruned_at < self._deps.intervals.prune:
            return
        await self._deps.sessions.prune(self._deps.clock() - KEPT_SESSION_EVENTS)
        await self._delete_ended_sessions()
        self._pruned_at = now

    async def _delete_ended_sessions(self) -> None:
        """Delete sessions that ended long ago, in batches, so that others can write."""
        kept = timedelta(days=self._deps.settings.keep_ended_days)
        if not kept:
            return
        deleted = 0
        for _ in range(MOST_BATCHES):
            count = await self._deps.sessions.delete_ended(self._deps.clock() - kept, BATCH)
            deleted += count
            if count < BATCH:
                break
        if deleted:
            log.info("sessions_deleted", count=deleted)


def keeps_logs(vm: Vm, keep_seconds: float, at: datetime) -> bool:
    """Whether to keep the logs of a VM: it failed, and not long ago."""
    if vm.released_at is None:
        return True
    return vm.state == "failed" and (at - vm.released_at).total_seconds() < keep_seconds

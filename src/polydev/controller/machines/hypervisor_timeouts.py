"""A hypervisor whose calls all have a timeout."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from polydev.controller.machines.hypervisor import (
    Hypervisor,
    Launch,
    SlotState,
    TemplatesReport,
)
from polydev.controller.machines.vm_driver_timing import Intervals
from polydev.errors import VmError
from polydev.vm.cancel_on_timeout import within
from polydev.vm.identity import Identity, Receipt

T = TypeVar("T")


class HypervisorWithTimeouts:
    """Wraps a hypervisor: each call ends in time, and every failure is a VmError."""

    def __init__(self, hypervisor: Hypervisor, intervals: Intervals) -> None:
        self._inner = hypervisor
        self._pace = intervals

    async def start(self, launch: Launch) -> None:
        what = f"starting the VM in slot {launch.slot}"
        await _in_time(self._pace.start_limit, self._inner.start(launch), what)

    async def templates(self) -> TemplatesReport:
        what = "reading the templates"
        return await _in_time(self._pace.look_limit, self._inner.templates(), what)

    async def resume(self, slot: int, vm_id: str) -> None:
        work = self._inner.resume(slot, vm_id)
        await _in_time(self._pace.look_limit, work, f"resuming the VM in slot {slot}")

    async def pause(self, slot: int, vm_id: str) -> None:
        work = self._inner.pause(slot, vm_id)
        await _in_time(self._pace.look_limit, work, f"pausing the VM in slot {slot}")

    async def set_clock(self, slot: int, vm_id: str) -> None:
        work = self._inner.set_clock(slot, vm_id)
        await _in_time(self._pace.identify_limit, work, f"setting the clock in slot {slot}")

    async def identify(self, slot: int, vm_id: str, identity: Identity) -> Receipt:
        work = self._inner.identify(slot, vm_id, identity)
        return await _in_time(
            self._pace.identify_limit, work, f"giving the VM in slot {slot} its identity"
        )

    async def stop(self, slot: int) -> None:
        await _in_time(
            self._pace.stop_limit, self._inner.stop(slot), f"stopping the VM in slot {slot}"
        )

    async def poll(self, slot: int) -> SlotState:
        what = f"polling slot {slot}"
        return await _in_time(self._pace.look_limit, self._inner.poll(slot), what)

    async def slots(self) -> dict[int, SlotState]:
        return await _in_time(self._pace.look_limit, self._inner.slots(), "listing the slots")

    async def discard(self, slot: int, vm_id: str, *, keep_logs: bool) -> None:
        work = self._inner.discard(slot, vm_id, keep_logs=keep_logs)
        await _in_time(self._pace.discard_limit, work, f"removing the files of VM {vm_id}")

    async def folders(self) -> set[tuple[int, str]]:
        return await _in_time(
            self._pace.look_limit, self._inner.folders(), "listing the folders of VMs"
        )

    async def close(self) -> None:
        await self._inner.close()

    def console(self, slot: int, vm_id: str) -> Path:
        return self._inner.console(slot, vm_id)

    def qemu_log(self, slot: int, vm_id: str) -> Path:
        return self._inner.qemu_log(slot, vm_id)


async def _in_time(seconds: float, work: Coroutine[Any, Any, T], what: str) -> T:
    try:
        return await within(seconds, work, what)
    except OSError as error:
        raise VmError(f"{what} failed: {error.strerror or error}") from error

"""A hypervisor that always answers in time, if with VmError."""

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
from polydev.controller.machines.intervals import Intervals
from polydev.errors import VmError
from polydev.vm.identity import Identity, Receipt
from polydev.vm.timeouts import within

T = TypeVar("T")


class HypervisorWithTimeouts:
    """Another hypervisor, with a limit to each of its calls and one kind of failure."""

    def __init__(self, hypervisor: Hypervisor, intervals: Intervals) -> None:
        self._inner = hypervisor
        self._pace = intervals

    async def start(self, launch: Launch) -> None:
        what = f"the start in slot {launch.slot}"
        await _kept(self._pace.start_limit, self._inner.start(launch), what)

    async def templates(self) -> TemplatesReport:
        what = "the look at the templates"
        return await _kept(self._pace.look_limit, self._inner.templates(), what)

    async def resume(self, slot: int, vm_id: str) -> None:
        work = self._inner.resume(slot, vm_id)
        await _kept(self._pace.look_limit, work, f"the resuming in slot {slot}")

    async def pause(self, slot: int, vm_id: str) -> None:
        work = self._inner.pause(slot, vm_id)
        await _kept(self._pace.look_limit, work, f"the pause in slot {slot}")

    async def set_clock(self, slot: int, vm_id: str) -> None:
        work = self._inner.set_clock(slot, vm_id)
        await _kept(self._pace.identify_limit, work, f"the setting of the clock in slot {slot}")

    async def identify(self, slot: int, vm_id: str, identity: Identity) -> Receipt:
        work = self._inner.identify(slot, vm_id, identity)
        return await _kept(self._pace.identify_limit, work, f"the identity in slot {slot}")

    async def stop(self, slot: int) -> None:
        await _kept(self._pace.stop_limit, self._inner.stop(slot), f"the stop of slot {slot}")

    async def poll(self, slot: int) -> SlotState:
        what = f"the look at slot {slot}"
        return await _kept(self._pace.look_limit, self._inner.poll(slot), what)

    async def slots(self) -> dict[int, SlotState]:
        return await _kept(self._pace.look_limit, self._inner.slots(), "the look at all slots")

    async def discard(self, slot: int, vm_id: str, *, keep_logs: bool) -> None:
        work = self._inner.discard(slot, vm_id, keep_logs=keep_logs)
        await _kept(self._pace.discard_limit, work, f"the removal of VM {vm_id}'s files")

    async def folders(self) -> set[tuple[int, str]]:
        return await _kept(self._pace.look_limit, self._inner.folders(), "the list of folders")

    async def close(self) -> None:
        await self._inner.close()

    def console(self, slot: int, vm_id: str) -> Path:
        return self._inner.console(slot, vm_id)

    def qemu_log(self, slot: int, vm_id: str) -> Path:
        return self._inner.qemu_log(slot, vm_id)


async def _kept(seconds: float, work: Coroutine[Any, Any, T], what: str) -> T:
    try:
        return await within(seconds, work, what)
    except OSError as error:
        raise VmError(f"{what} failed: {error.strerror or error}") from error

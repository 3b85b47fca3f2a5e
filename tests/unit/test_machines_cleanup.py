"""Cleanup beside VMs that start and end meanwhile, and after failures of single parts."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import cast

from prometheus_client import CollectorRegistry

from polydev.controller.entities import Vm, now
from polydev.controller.machines import cleanup
from polydev.controller.machines.cleanup import BATCH, Cleanup, SlotLocks, keeps_logs
from polydev.controller.machines.hypervisor import SlotState
from polydev.controller.machines.metrics import MachineMetrics
from polydev.controller.machines.vm_driver_dependencies import Dependencies
from polydev.controller.machines.vm_driver_timing import Intervals
from polydev.errors import VmError

AT = now()
VM = Vm("new", 2, "192.168.100.2", "creating", "none", AT, "4f1d", AT)


class FakeHost:
    """Rows, slots and folders of a host; `calls` has the effects."""

    def __init__(self) -> None:
        self.rows: list[Vm] = []
        self.running: dict[int, str] = {}
        self.left: set[tuple[int, str]] = set()
        self.ended = 0
        self.calls: list[str] = []
        self.was_listed = asyncio.Event()

    async def repair(self) -> list[str]:
        return []

    async def held(self) -> list[Vm]:
        self.was_listed.set()
        return list(self.rows)

    async def get(self, vm_id: str) -> Vm:
        raise VmError(f"there is no VM {vm_id}")

    async def slots(self) -> dict[int, SlotState]:
        return {slot: SlotState(slot, "active", vm_id) for slot, vm_id in self.running.items()}

    async def folders(self) -> set[tuple[int, str]]:
        return set(self.left)

    async def stop(self, slot: int) -> None:
        self.calls.append(f"stop {slot}")
        del self.running[slot]

    async def discard(self, slot: int, vm_id: str, *, keep_logs: bool) -> None:
        self.calls.append(f"discard {slot} {vm_id}")
        self.left.remove((slot, vm_id))

    async def prune(self, before: object) -> int:
        return 0

    async def delete_ended(self, before: object, limit: int) -> int:
        deleted = min(self.ended, limit)
        self.ended -= deleted
        return deleted


class RefusingHost(FakeHost):
    """A host that neither lists its slots nor stops anything."""

    async def slots(self) -> dict[int, SlotState]:
        raise VmError("systemd does not answer")


def cleanup_of(host: FakeHost, locks: SlotLocks) -> Cleanup:
    words = SimpleNamespace(
        settings=SimpleNamespace(keep_failed_seconds=0, keep_ended_days=30),
        vms=host,
        sessions=host,
        hypervisor=host,
        metrics=MachineMetrics(CollectorRegistry()),
        clock=lambda: AT,
        intervals=Intervals(),
    )
    return Cleanup(cast(Dependencies, words), locks)


def cleaned(host: FakeHost) -> FakeHost:
    asyncio.run(cleanup_of(host, SlotLocks()).run())
    return host


def test_cleanup_spares_a_slot_that_a_vm_has_got_meanwhile() -> None:
    """The VM got the slot after the cleanup had read who has one; its own steps stop the other."""

    async def scenario() -> None:
        host, locks = FakeHost(), SlotLocks()
        host.running[2] = "other"
        async with locks[2]:
            running = asyncio.create_task(cleanup_of(host, locks).run())
            await host.was_listed.wait()
            host.rows = [VM]
        await running
        assert host.calls == []

    asyncio.run(scenario())


def test_cleanup_waits_for_the_lock_of_a_slot() -> None:
    async def scenario() -> None:
        host, locks = FakeHost(), SlotLocks()
        host.running[2] = "orphan"
        async with locks[2]:
            running = asyncio.create_task(cleanup_of(host, locks).run())
            await host.was_listed.wait()
            assert host.calls == []
        await running
        assert host.calls == ["stop 2"]

    asyncio.run(scenario())


def test_folder_of_a_running_vm_without_a_row_stays_until_it_stops() -> None:
    class StubbornHost(FakeHost):
        async def stop(self, slot: int) -> None:
            raise VmError("the unit does not stop")

    host = StubbornHost()
    host.running[2] = "orphan"
    host.left = {(2, "orphan"), (3, "gone")}
    assert cleaned(host).left == {(2, "orphan")}


def test_failed_part_of_the_cleanup_does_not_stop_the_others() -> None:
    host = RefusingHost()
    host.ended = 1
    assert cleaned(host).ended == 0


def test_sessions_are_deleted_in_a_limited_number_of_batches() -> None:
    host = FakeHost()
    host.ended = 2 * BATCH + 1
    assert cleaned(host).ended == 0
    host.ended = (cleanup.MOST_BATCHES + 1) * BATCH
    assert cleaned(host).ended == BATCH


def test_logs_of_a_failed_vm_are_kept_for_their_time() -> None:
    failed = replace(VM, state="failed", released_at=AT)
    assert keeps_logs(failed, 60, AT + timedelta(seconds=59))
    assert not keeps_logs(failed, 60, AT + timedelta(seconds=60))
    assert not keeps_logs(failed, 0, AT), "with 0 seconds no logs are kept"

"""The pool under the driver: filled, used, repaired, by whichever process leads."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polydev.controller.entities import Session, Vm
from polydev.controller.machines.hypervisor import Launch
from polydev.errors import CapacityError
from tests.driving import QUICK, World, play, until, worlds
from tests.vms import IMAGE_DIGEST, DiesAsCloneVm, NoIdentityVm, UnloadableVm

TEMPLATE, NEWER = "7e" * 32, "8f" * 32
ROOMY: dict[str, Any] = {"templates": True, "pool": {"size": 2, "least_free_memory_mib": 0}}


async def primed(world: World, count: int) -> list[Vm]:
    async def look() -> list[Vm] | None:
        found = [vm for vm in await world.vms.held() if vm.pooled and vm.state == "ready"]
        return found if len(found) == count else None

    return await until(look, f"{count} primed VMs")


async def taken_clone(world: World, session: Session) -> Vm:
    """The session's VM, which has its identity."""
    await world.until_session(session, "vm_created")
    vm = await world.vm_of(session)
    assert vm.receipt is not None
    assert (vm.receipt["vm_id"], vm.receipt["session_id"]) == (vm.id, session.id)
    assert not vm.pooled
    return vm


async def ended(world: World, vm: Vm) -> str | None:
    """Wait until a VM has ended without a failure; return the reason that its row has."""

    async def look() -> Vm | None:
        found = await world.vms.get(vm.id)
        return found if found.state == "ended" else None

    return (await until(look, f"the end of {vm.id}")).reason


def test_pool_fills_and_its_vms_are_paused_without_identity(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        hypervisor = world.host.hypervisor
        hypervisor.use_template(TEMPLATE)
        async with world.driving() as driver:
            vms = await primed(world, 2)
            await driver.more_turns()
            assert [vm.slot for vm in await world.vms.held()] == [2, 3]
            for vm in vms:
                fake = hypervisor.vms[vm.slot]
                assert (fake.is_paused, fake.said_vm_id) == (True, "template")
                assert fake.asked == 0, "an answer would cost it memory for as long as it waits"
                assert (vm.template, vm.receipt, vm.timings) == (TEMPLATE, None, {})
            await driver.more_turns()
            assert [hypervisor.vms[vm.slot].asked for vm in vms] == [0, 0], "it is left in peace"
            assert not any(call.startswith("identify") for call in hypervisor.calls)

    play(worlds(tmp_path, (2, 3, 4), **ROOMY), scenario)


def test_session_takes_primed_vm_and_pool_refills(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        hypervisor = world.host.hypervisor
        hypervisor.use_template(TEMPLATE)
        async with world.driving():
            first, second = await primed(world, 2)
            session = await world.start()
            assert session.vm_id == first.id
            assert session.state == "vm_starting"
            vm = await taken_clone(world, session)
            assert not hypervisor.vms[vm.slot].is_paused
            assert hypervisor.calls.count(f"start {vm.slot}") == 1
            assert list(vm.timings) == ["ready"]
            again = await primed(world, 2)
            assert second.id in {vm.id for vm in again}
            await world.sessions.apply(session.id, "terminate")
            await world.until_released(session)

    play(worlds(tmp_path, (2, 3, 4, 5), **ROOMY), scenario)


def test_pool_leaves_and_returns_slots_to_sessions(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.host.hypervisor.use_template(TEMPLATE)
        async with world.driving() as driver:
            await primed(world, 1)
            await driver.more_turns()
            assert len(await world.vms.held()) == 1
            sessions = [await world.start(), await world.start()]
            for session in sessions:
                await taken_clone(world, session)
            with pytest.raises(CapacityError):
                await world.start()

    play(worlds(tmp_path, (2, 3), session={"per_user": 3}, **ROOMY), scenario)


def test_session_takes_unprimed_pool_vm_if_no_slot_is_free(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        hypervisor = world.host.hypervisor
        hypervisor.use_template(TEMPLATE)
        # It would be primed for longer than this test runs.
        async with world.driving(intervals=replace(QUICK, primed=3600, prime_limit=7200)):
            fake = await hypervisor.started(2)

            async def resumed() -> bool:
                return not fake.is_paused

            await until(resumed, "the priming")
            session = await world.start()
            assert session.vm_id == fake.launch.vm_id
            await taken_clone(world, session)

    pool = {"size": 1, "spare_slots": 0, "least_free_memory_mib": 0}
    play(worlds(tmp_path, (2,), templates=True, pool=pool), scenario)


def test_newer_template_replaces_pool_vms(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        hypervisor = world.host.hypervisor
        hypervisor.use_template(TEMPLATE)
        async with world.driving():
            old = await primed(world, 2)
            hypervisor.use_template(NEWER)

            async def renewed() -> bool:
                found = [vm for vm in await world.vms.held() if vm.state == "ready"]
                return len(found) == 2 and {vm.template for vm in found} == {NEWER}

            await until(renewed, "a pool of the newer template")
            for vm in old:
                assert await ended(world, vm) is None

    play(worlds(tmp_path, (2, 3, 4, 5, 6), **ROOMY), scenario)


def test_pool_is_drained_if_templates_are_off(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.host.hypervisor.use_template(TEMPLATE)
        await world.vms.add_pooled(IMAGE_DIGEST, TEMPLATE, spare_slots=0)
        async with world.driving():

            async def is_empty() -> bool:
                return not await world.vms.held()

            await until(is_empty, "an empty pool")

    play(worlds(tmp_path, pool={"size": 2}), scenario)


@pytest.mark.parametrize("kind", [UnloadableVm, DiesAsCloneVm])
def test_pool_vm_that_cannot_be_primed_fails_and_is_replaced(
    tmp_path: Path, kind: type[UnloadableVm]
) -> None:
    async def scenario(world: World) -> None:
        hypervisor = world.host.hypervisor
        hypervisor.use_template(TEMPLATE)
        hypervisor.next = [kind, kind]
        async with world.driving():
            await primed(world, 2)
            failed = [vm for vm in await world.vms.list() if vm.reason]
            assert len(failed) == 2
            assert all(vm.state == "failed" for vm in failed)

    play(worlds(tmp_path, (2, 3, 4), **ROOMY), scenario)


def test_dead_primed_vm_is_replaced(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        hypervisor = world.host.hypervisor
        hypervisor.use_template(TEMPLATE)
        async with world.driving():
            first, _second = await primed(world, 2)
            hypervisor.vms[first.slot].die("oom-kill")

            async def gone() -> bool:
                return (await world.vms.get(first.id)).state == "failed"

            await until(gone, "its end")
            await primed(world, 2)
            reason = (await world.vms.get(first.id)).reason or ""
            assert reason.startswith("the VM ended by itself: oom-kill")

    play(worlds(tmp_path, (2, 3, 4), **ROOMY), scenario)


def test_pool_vm_with_silent_guest_boots_instead(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.host.hypervisor.use_template(TEMPLATE)
        world.host.hypervisor.next = [NoIdentityVm]
        async with world.driving():
            await primed(world, 1)
            session = await world.start()
            await world.until_session(session, "vm_created")
            vm = await world.vm_of(session)
            assert (vm.template, vm.receipt) == (None, None)
            assert (vm.boots_because or "").startswith("it could not be resumed")

    play(worlds(tmp_path, (2, 3), **ROOMY), scenario)


@pytest.mark.parametrize("done", ["added", "started", "launched", "resumed", "taken", "identified"])
def test_next_driver_continues_with_the_pool(tmp_path: Path, done: str) -> None:
    """The former controller ended after one of its steps; the next one continues from there."""
    steps = ["added", "started", "launched", "resumed", "taken", "identified"]

    async def scenario(world: World) -> None:
        hypervisor = world.host.hypervisor
        hypervisor.use_template(TEMPLATE)
        vm = await world.vms.add_pooled(IMAGE_DIGEST, TEMPLATE, spare_slots=0)
        assert vm
        reached = steps.index(done)
        session = None
        if reached >= 1:
            await hypervisor.start(Launch(vm.id, vm.slot, vm.image_digest, None, TEMPLATE))
        if reached >= 2:
            await world.vms.launched(vm.id)
        if reached >= 3:
            await hypervisor.resume(vm.slot, vm.id)
        if reached >= 4:
            await hypervisor.pause(vm.slot, vm.id)
            await world.vms.primed(vm.id)
            session = await world.start()
        if reached >= 5:
            await hypervisor.resume(vm.slot, vm.id)
            hypervisor.vms[vm.slot].said_vm_id = vm.id
        async with world.driving():
            if session is None:
                assert vm.id in {each.id for each in await primed(world, 1)}
                session = await world.start()
            assert session.vm_id == vm.id
            await taken_clone(world, session)
            assert hypervisor.calls.count(f"start {vm.slot}") == 1

    play(worlds(tmp_path, (2, 3), **ROOMY), scenario)


def test_concurrent_sessions_get_different_vms(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.host.hypervisor.use_template(TEMPLATE)
        async with world.driving():
            await primed(world, 2)
            sessions = await asyncio.gather(*(world.start() for _ in range(6)))
            vms = [await taken_clone(world, session) for session in sessions]
            assert len({vm.id for vm in vms}) == len({vm.slot for vm in vms}) == 6

    limits = {"per_user": 6}
    play(worlds(tmp_path, range(2, 8), session=limits, **ROOMY), scenario)


def test_memory_shortage_drains_pool_and_queues_sessions(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        hypervisor = world.host.hypervisor
        hypervisor.use_template(TEMPLATE)
        async with world.driving() as driver:
            await primed(world, 2)
            hypervisor.free_memory_mib = 100

            async def is_empty() -> bool:
                return not await world.vms.held()

            await until(is_empty, "an empty pool")
            session = await world.start()
            told = await world.until_news(session, "queued")
            assert told.data == {"place": 1, "because": "the host is short of memory"}
            await driver.more_turns()
            assert not hypervisor.running()
            hypervisor.free_memory_mib = 1e6
            await taken_clone(world, session)
            await primed(world, 2)

    limits = {"size": 2, "least_free_memory_mib": 1024}
    play(worlds(tmp_path, (2, 3, 4, 5), templates=True, pool=limits), scenario)


def test_driver_notifies_after_each_vm_step(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.host.hypervisor.use_template(TEMPLATE)
        notified: list[str] = []
        async with world.driving(on_step=lambda: notified.append("")) as driver:
            await primed(world, 2)
            await driver.more_turns()
            notified.clear()
            session = await world.start()
            driver.wake()
            await taken_clone(world, session)

            async def was_notified() -> bool:
                return bool(notified)

            await until(was_notified, "a notification")
            await primed(world, 2)
            await driver.more_turns()
            notified.clear()
            await driver.more_turns()
            assert not notified, "nobody is notified while nothing changes"

    checks = {"every_seconds": 3600}
    play(worlds(tmp_path, (2, 3, 4, 5), **ROOMY | {"vm_check": checks}), scenario)

"""Unused VMs are paused, and resumed as soon as somebody needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polydev.agent.login_state import login_reply
from polydev.controller.entities import Session
from polydev.errors import VmError
from tests.driving import World, play, until, worlds
from tests.vms import FakeVm

IDLE_SECONDS = 60


async def ready_vm(world: World) -> tuple[Session, FakeVm]:
    session = await world.start()
    await world.until_session(session, "vm_created")
    vm = await world.vm_of(session)
    return session, world.host.hypervisor.vms[vm.slot]


async def until_paused(world: World, session: Session) -> None:
    async def look() -> bool:
        return (await world.vm_of(session)).paused_at is not None

    await until(look, "the pause")


async def until_awake(world: World, session: Session) -> None:
    async def look() -> bool:
        return (await world.vm_of(session)).paused_at is None

    await until(look, "the waking")


async def until_idle(fake: FakeVm) -> None:
    async def look() -> bool:
        return fake.is_paused

    await until(look, "the pause in the hypervisor")


async def until_checked_again(fake: FakeVm) -> None:
    asked = fake.asked

    async def look() -> bool:
        return fake.asked > asked + 3

    await until(look, "checks")


def test_idle_vm_is_paused_and_wakes_for_a_viewer(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        async with world.driving() as driver:
            session, fake = await ready_vm(world)
            world.clock.pass_(IDLE_SECONDS - 1)
            await until_checked_again(fake)
            assert not fake.is_paused
            world.clock.pass_(1)
            await until_paused(world, session)
            await world.until_news(session, "paused")
            await until_idle(fake)  # it is noted before it is done
            asked = fake.asked
            await driver.more_turns()
            assert fake.asked == asked, "whoever is paused is asked nothing"
            world.clock.pass_(1)
            await world.sessions.watched([session.id])
            await until_awake(world, session)
            assert not fake.is_paused
            assert "set_clock 2" in world.host.hypervisor.calls
            await world.until_news(session, "awake")
            await until_checked_again(fake)
            assert (await world.vm_of(session)).failed_checks == 0

    play(worlds(tmp_path, **ENDLESS), scenario)


def test_viewer_keeps_vm_awake(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        async with world.driving():
            session, fake = await ready_vm(world)
            for _ in range(3):
                world.clock.pass_(IDLE_SECONDS - 1)
                await world.sessions.watched([session.id])
                await until_checked_again(fake)
            assert not await world.news(session, "paused")
            # A heartbeat keeps the session alive, but does not wake the VM.
            world.clock.pass_(IDLE_SECONDS)
            await world.sessions.heartbeat(session.id)
            await until_paused(world, session)
            await world.sessions.heartbeat(session.id)
            assert (await world.vm_of(session)).paused_at is not None

    play(worlds(tmp_path, **ENDLESS), scenario)


def test_login_keeps_vm_awake(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        async with world.driving():
            session, fake = await ready_vm(world)
            fake.login = login_reply("claude", "waiting")
            await world.sessions.set_login(session.id, "waiting")
            world.clock.pass_(2 * IDLE_SECONDS)
            await until_checked_again(fake)
            assert not await world.news(session, "paused")
            fake.login = login_reply("claude", "done")
            await world.until_session(session, "authenticated")
            await until_paused(world, session)

    play(worlds(tmp_path, **ENDLESS), scenario)


def test_vm_is_never_paused_if_pausing_is_off(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        async with world.driving():
            session, fake = await ready_vm(world)
            world.clock.pass_(100 * IDLE_SECONDS)
            await until_checked_again(fake)
            assert not await world.news(session, "paused")

    play(worlds(tmp_path, **(ENDLESS | {"vm": {"pause_after_seconds": 0}})), scenario)


def test_vm_used_meanwhile_is_not_paused(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        async with world.driving():
            session, _fake = await ready_vm(world)
        seen = await world.vm_of(session)
        await world.vms.used(seen.id)
        assert not await world.vms.pause(seen)
        assert await world.vms.pause(await world.vm_of(session))

    play(worlds(tmp_path, **ENDLESS), scenario)


def test_refused_pause_leaves_vm_awake(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        async def refuse(slot: int, vm_id: str) -> None:
            raise VmError("QEMU: no")

        async with world.driving():
            session, fake = await ready_vm(world)
            pause, world.host.hypervisor.pause = world.host.hypervisor.pause, refuse  # type: ignore[method-assign]
            world.clock.pass_(IDLE_SECONDS)
            await world.until_news(session, "awake")
            assert not fake.is_paused
            world.host.hypervisor.pause = pause  # type: ignore[method-assign]
            world.clock.pass_(IDLE_SECONDS)
            await until_paused(world, session)
            await until_idle(fake)

    play(worlds(tmp_path, **ENDLESS), scenario)


def test_paused_vm_that_dies_fails_with_reason(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        async with world.driving():
            session, fake = await ready_vm(world)
            world.clock.pass_(IDLE_SECONDS)
            await until_paused(world, session)
            fake.die("oom-kill")
            ended = await world.until_session(session, "failed")
            assert (ended.reason or "").startswith("the VM ended by itself: oom-kill")

    play(worlds(tmp_path, **ENDLESS), scenario)


def test_session_end_ends_paused_vm(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        async with world.driving():
            session, _fake = await ready_vm(world)
            world.clock.pass_(IDLE_SECONDS)
            await until_paused(world, session)
            await world.sessions.apply(session.id, "terminate")
            await world.until_released(session)
            await world.assert_nothing_left()

    play(worlds(tmp_path, **ENDLESS), scenario)


def test_next_driver_wakes_paused_vm(tmp_path: Path) -> None:
    """The former controller ended after the request to wake, or after resuming the VM."""

    async def scenario(world: World) -> None:
        async with world.driving():
            session, fake = await ready_vm(world)
            world.clock.pass_(IDLE_SECONDS)
            await until_paused(world, session)
        await world.vms.used(session.vm_id)
        await world.host.hypervisor.resume(2, session.vm_id)
        async with world.driving():
            await until_awake(world, session)
            await until_checked_again(fake)

    play(worlds(tmp_path, **ENDLESS), scenario)


ENDLESS: dict[str, Any] = {
    "session": {"idle_seconds": 10_000, "max_seconds": 100_000},
    "vm": {"pause_after_seconds": IDLE_SECONDS},
}

"""A driver that ends at any point: the next one continues, and nothing is left over or lost."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from polydev.controller.entities import Session
from polydev.controller.machines.hypervisor import Hypervisor, Launch
from polydev.errors import VmError
from tests.driving import QUICK, World, play, until, worlds
from tests.vms import IMAGE_DIGEST, FakeVm, HealthyVm, PanicsVm, SlowVm, StubbornVm

EFFECTS = frozenset(
    ("start", "stop", "discard", "launched", "stage_reached", "ready", "fail", "released")
)
MOST_EFFECTS = 40
SHORT = replace(QUICK, start_limit=0.05)


class Interruption:
    """Count effects; do `what` before or after effect number `at`."""

    def __init__(self, at: int, *, before: bool) -> None:
        self.at = at
        self.before = before
        self.count = 0
        self.came = asyncio.Event()

    async def strike(self) -> None:
        raise NotImplementedError

    def around(self, inner: Any) -> Any:
        """`inner`, with its effects counted."""
        return _Around(inner, self)

    async def call(self, effect: Callable[..., Any], *args: Any, **words: Any) -> Any:
        self.count += 1
        is_it = self.count == self.at
        if is_it and self.before:
            await self.strike()
        result = await effect(*args, **words)
        if is_it and not self.before:
            await self.strike()
        return result


class Kill(Interruption):
    """From this effect on the process does nothing more."""

    async def strike(self) -> None:
        self.came.set()
        await asyncio.Event().wait()


class Refusal(Interruption):
    """The call fails once."""

    async def strike(self) -> None:
        self.came.set()
        raise VmError("not now")


class Bug(Interruption):
    async def strike(self) -> None:
        self.came.set()
        raise KeyError("a bug")


class _Around:
    def __init__(self, inner: Any, interruption: Interruption) -> None:
        self._inner = inner
        self._interruption = interruption

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in EFFECTS or not inspect.iscoroutinefunction(found):
            return found

        async def counted(*args: Any, **words: Any) -> Any:
            return await self._interruption.call(found, *args, **words)

        return counted


async def use_and_end_session(world: World, session: Session, ends: tuple[str, ...]) -> None:
    """Act as a user: wait for the VM, and end the session."""

    async def look() -> bool:
        found = await world.sessions.get(session.id)
        if found.state == "vm_created":
            await world.sessions.apply(session.id, "terminate")
        return found.state in ("terminated", *ends)

    await until(look, "the end of the session")
    await world.until_released(session)


async def run_interrupted_session(
    world: World, struck: Interruption, ends: tuple[str, ...]
) -> bool:
    """One session under a driver that is struck, and under another if that is its end.

    Whether it was struck.
    """
    session = await world.start()
    hypervisor = cast(Hypervisor, struck.around(world.host.hypervisor))
    user = asyncio.create_task(use_and_end_session(world, session, ends))
    came = asyncio.create_task(struck.came.wait())
    async with world.driving(hypervisor, struck.around(world.vms)):
        wanted = {came, user} if isinstance(struck, Kill) else {user}
        await asyncio.wait(wanted, return_when=asyncio.FIRST_COMPLETED)
    async with world.driving():
        await user
        came.cancel()
        await asyncio.wait({came})
        await world.assert_nothing_left(logs=bool(ends))
    return struck.came.is_set()


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("struck", [Kill, Refusal, Bug])
@pytest.mark.parametrize("kind", [HealthyVm, StubbornVm, PanicsVm])
def test_driver_interrupted_at_any_effect_reaches_same_end(
    tmp_path: Path, struck: type[Interruption], before: bool, kind: type[FakeVm]
) -> None:
    ends = ("failed",) if kind is PanicsVm else ()

    async def scenario(world: World) -> None:
        for number in range(1, MOST_EFFECTS):
            if not await run_interrupted_session(world, struck(number, before=before), ends):
                assert number > 6
                return
        raise AssertionError("its effects have no end")

    play(worlds(tmp_path, slots=(2,), kind=kind), scenario)


@pytest.mark.parametrize("stage", ["kernel", "network", "ready"])
def test_restarted_driver_takes_over_booting_vm(tmp_path: Path, stage: Any) -> None:
    async def scenario(world: World) -> None:
        session = await world.start()
        async with world.driving():
            fake = await world.host.hypervisor.started(2)
            await fake.reach(stage)
            await world.until_stage(session, stage)
        world.clock.pass_(100)  # nobody drives
        await fake.reach("ready")
        async with world.driving():
            await world.until_session(session, "vm_created")
            assert world.host.hypervisor.vms[2] is fake
            assert world.host.hypervisor.calls.count("start 2") == 1
            await world.sessions.apply(session.id, "terminate")
            await world.until_released(session)

    play(worlds(tmp_path, kind=SlowVm), scenario)


def test_driver_restart_does_not_extend_boot_deadline(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        session = await world.start()
        async with world.driving():
            fake = await world.host.hypervisor.started(2)
            await fake.reach("kernel")
            await world.until_stage(session, "kernel")
        world.clock.pass_(119)
        async with world.driving():
            await until(lambda: _true(fake.runs), "the VM")
            await world.until_checked()
            assert (await world.vm_of(session)).state == "starting"
            world.clock.pass_(1)
            await world.until_session(session, "failed")

    play(worlds(tmp_path, kind=SlowVm), scenario)


def test_vm_that_became_ready_without_driver_is_not_late(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        session = await world.start()
        async with world.driving():
            fake = await world.host.hypervisor.started(2)
            await fake.reach("services")
            await world.until_stage(session, "services")
        await fake.reach("ready")
        world.clock.pass_(3600)
        async with world.driving():
            await world.until_session(session, "vm_created")

    play(worlds(tmp_path, kind=SlowVm), scenario)


def test_vm_that_died_without_driver_fails_with_reason(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        session = await world.start()
        async with world.driving():
            await world.until_session(session, "vm_created")
        world.host.hypervisor.vms[2].die("oom-kill")
        async with world.driving():
            found = await world.until_session(session, "failed")
            assert found.reason == "the VM ended by itself: oom-kill"
            await world.until_released(session)

    play(worlds(tmp_path), scenario)


def test_one_of_two_drivers_leads_and_hands_over(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        session = await world.start()
        async with world.driving() as first:
            await world.until_session(session, "vm_created")
            async with world.driving() as second:
                await second.more_turns()
                assert (first.leads, second.leads) == (True, False)
                other = await world.start()
                await world.until_session(other, "vm_created")
                assert second._lifecycles == {}, "it drives VMs without the lead"
        async with world.driving() as first:
            await until(lambda: _true(first.leads), "the lead")
            waiting = world.driving()
            second = await waiting.__aenter__()
        try:
            assert not first.leads
            await until(lambda: _true(second.leads), "the lead")
            await world.sessions.apply(session.id, "terminate")
            await world.until_released(session)
        finally:
            await waiting.__aexit__(None, None, None)
        assert world.host.hypervisor.calls.count("start 2") == 1

    play(worlds(tmp_path), scenario)


def test_orphaned_unit_and_folders_are_removed(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        hypervisor = world.host.hypervisor
        await hypervisor.start(Launch(str(uuid.uuid4()), 3, IMAGE_DIGEST, None))
        (tmp_path / "microvm/2" / str(uuid.uuid4())).mkdir()
        async with world.driving():

            async def cleared() -> bool:
                return not hypervisor.running() and not hypervisor.left()

            await until(cleared, "an empty host")

    play(worlds(tmp_path), scenario)


def test_orphan_in_slot_of_new_vm_is_removed(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        orphan = Launch(str(uuid.uuid4()), 2, IMAGE_DIGEST, None)
        await world.host.hypervisor.start(orphan)
        session = await world.start()
        async with world.driving():
            await world.until_session(session, "vm_created")
            assert world.host.hypervisor.vms[2].launch.vm_id == session.vm_id

            async def cleared() -> bool:
                return (2, orphan.vm_id) not in await world.host.hypervisor.folders()

            await until(cleared, "the end of the orphan's files")

    play(worlds(tmp_path), scenario)


def test_session_without_vm_fails_with_a_reason(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        session = await world.start()
        async with world.driving():
            await world.until_session(session, "vm_created")
        async with world.database.writing() as connection:
            await connection.exec_driver_sql(
                "UPDATE vms SET state = 'ended', released_at = '2026-01-01 00:00:00'"
            )
        async with world.driving():
            found = await world.until_session(session, "failed")
            assert found.reason == "its VM is gone"

            async def cleared() -> bool:
                return not world.host.hypervisor.running() and not world.host.hypervisor.left()

            await until(cleared, "an empty host")

    play(worlds(tmp_path), scenario)


def test_session_end_during_boot_releases_the_vm(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        async with world.driving():
            session = await world.start()
            await world.host.hypervisor.started(2)
            await world.sessions.apply(session.id, "terminate")
            vm = await world.until_released(session)
            assert (vm.state, vm.ready_at) == ("ended", None)
            await world.assert_nothing_left()

    play(worlds(tmp_path, kind=SlowVm), scenario)


def test_driver_survives_unreachable_database(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        class Away:
            is_away = True
            seen = 0

            def __getattr__(self, name: str) -> Any:
                if self.is_away:
                    self.seen += 1
                    raise OSError("no route to the database")
                return getattr(world.vms, name)

        vms, session = Away(), await world.start()
        with capture_logs() as logs:
            async with world.driving(vms=vms):
                await until(lambda: _true(vms.seen > 5), "looks in vain")
                vms.is_away = False
                await world.until_session(session, "vm_created")
                vms.is_away, vms.seen = True, 0
                await until(lambda: _true(vms.seen > 5), "looks in vain")
                assert 2 in world.host.hypervisor.running()
                vms.is_away = False
                await world.sessions.apply(session.id, "terminate")
                await world.until_released(session)
        told = [each for each in logs if each["event"] == "driver_failed"]
        assert len([each for each in told if each["part"] == "tick"]) == 2, "once each time"

    play(worlds(tmp_path), scenario)


def test_unreachable_database_fails_no_vm_that_starts(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        class AwayAtLaunch:
            failures = 0

            def __getattr__(self, name: str) -> Any:
                return getattr(world.vms, name)

            async def launched(self, vm_id: str) -> None:
                if self.failures <= QUICK.start_tries:
                    self.failures += 1
                    raise OSError("no route to the database")
                await world.vms.launched(vm_id)

        session = await world.start()
        async with world.driving(vms=AwayAtLaunch()):
            await world.until_session(session, "vm_created")

    play(worlds(tmp_path), scenario)


def test_hung_hypervisor_call_delays_no_other_slot(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        class HangsInSlot2:
            def __getattr__(self, name: str) -> Any:
                return getattr(world.host.hypervisor, name)

            async def start(self, launch: Launch) -> None:
                if launch.slot == 2:
                    await asyncio.Event().wait()
                # On a busy machine it may take longer than the limit. Then it goes on, as a start
                # by systemd does, and the next try finds the VM.
                await asyncio.shield(world.host.hypervisor.start(launch))

        first, second = await world.start(), await world.start()
        hypervisor = cast(Hypervisor, HangsInSlot2())
        async with world.driving(hypervisor, intervals=SHORT):
            await world.until_session(second, "vm_created")
            found = await world.until_session(first, "failed")
            assert "starting the VM in slot 2 did not end within 0.05 s" in (found.reason or "")
            await world.until_released(first)

    play(worlds(tmp_path), scenario)


async def _true(value: bool) -> bool:
    return value

"""A VM's lifecycle under the driver, from its start to its release, and each way to fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from polydev.agent.reply_types import HealthReply
from polydev.controller.entities import Session, Vm
from polydev.errors import FilesLeft, VmError
from polydev.vm.boot_stages import STAGES, Stage
from polydev.vm.cpu_wait_time import ThreadTimes
from tests.driving import World, play, until, worlds
from tests.vms import (
    DyingVm,
    FailedServiceVm,
    FakeVm,
    HealthyVm,
    NeverBootsVm,
    NoNetworkVm,
    NoSpaceVm,
    PanicsVm,
    RefusedVm,
    SickVm,
    SlowVm,
    StubbornVm,
    WrongAgentVm,
)


def test_healthy_vm_is_ready_and_leaves_nothing(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        session = await world.start()
        async with world.driving():
            await world.until_session(session, "vm_created")
            vm = await world.vm_of(session)
            assert (vm.state, vm.stage, vm.slot) == ("ready", "ready", 2)
            assert set(vm.timings) >= {"kernel", "init", "network", "services", "ready"}
            assert world.host.hypervisor.vms[2].launch.session_id == session.id
            await world.sessions.apply(session.id, "terminate")
            vm = await world.until_released(session)
            assert (vm.state, vm.reason) == ("ended", None)
            await world.assert_nothing_left()

    play(worlds(tmp_path), scenario)


def test_boot_stages_are_reported_as_they_are_reached(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        session = await world.start()
        async with world.driving():
            fake = await world.host.hypervisor.started(2)
            await world.until_session(session, "vm_starting")
            for stage in STAGES[1:-1]:
                world.clock.pass_(2)
                await fake.reach(stage)
                assert (await world.until_stage(session, stage)).stage == stage
            await fake.reach("ready")
            await world.until_session(session, "vm_created")
        told = [news.data for news in await world.news(session, "stage")]
        assert [each["stage"] for each in told] == list(STAGES[1:])
        assert [each["seconds"] for each in told] == [2, 4, 6, 8, 8]

    play(worlds(tmp_path, kind=SlowVm), scenario)


@pytest.mark.parametrize("kind", [SlowVm, PanicsVm])
def test_vms_boot_in_turn_and_waiting_sessions_get_their_place(
    tmp_path: Path, kind: type[FakeVm]
) -> None:
    """The second boots next, however the first ends."""

    async def scenario(world: World) -> None:
        first, second = await world.start(), await world.start()
        hypervisor = world.host.hypervisor
        hypervisor.next.append(kind)
        async with world.driving():
            fake = await hypervisor.started(2)
            told = await world.until_news(second, "queued")
            assert told.data == {"place": 1}
            if kind is SlowVm:
                assert set(hypervisor.vms) == {2}
                assert (await world.vm_of(second)).state == "creating"
                await fake.reach("ready")
            await world.until_session(first, "vm_created", "failed")
            await world.until_session(second, "vm_created")
            assert not await world.news(first, "queued")

    play(worlds(tmp_path, boots_at_once=1), scenario)


def test_queue_places_of_a_burst_are_written_in_one_transaction(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        sessions = [await world.start() for _ in range(5)]
        world.host.hypervisor.next.append(SlowVm)
        async with world.driving() as driver:
            fake = await world.host.hypervisor.started(2)
            told = [await world.until_news(session, "queued") for session in sessions[1:]]
            assert [news.data for news in told] == [{"place": place} for place in (1, 2, 3, 4)]
            assert len({news.at for news in told}) == 1, "one transaction"
            await driver.more_turns()
            for session in sessions[1:]:
                assert len(await world.news(session, "queued")) == 1, "nothing has changed"
            await fake.reach("ready")
            for session in sessions:
                await world.until_session(session, "vm_created")
                places = [str(news.data["place"]) for news in await world.news(session, "queued")]
                assert places == sorted(set(places), reverse=True)

    limits = {"per_user": 5}
    play(worlds(tmp_path, range(2, 8), boots_at_once=1, session=limits), scenario)


async def failed(world: World, session: Session) -> tuple[str, Vm]:
    """Wait until the session has failed and its slot is free; return the reason and the VM."""
    found = await world.until_session(session, "failed")
    vm = await world.until_released(session)
    assert (vm.state, vm.reason) == ("failed", found.reason)
    await world.assert_nothing_left(logs=True)
    return found.reason or "", vm


@pytest.mark.parametrize(
    ("reached", "awaited", "seconds"),
    [
        ("none", "kernel", 60),
        ("kernel", "init", 120),
        ("init", "network", 120),
        ("network", "services", 180),
        ("services", "ready", 300),
    ],
)
def test_each_stage_has_its_deadline(
    tmp_path: Path, reached: Stage, awaited: Stage, seconds: int
) -> None:
    async def scenario(world: World) -> None:
        session = await world.start()
        async with world.driving():
            fake = await world.host.hypervisor.started(2)
            await world.until_session(session, "vm_starting")
            world.clock.pass_(10)
            await fake.reach(reached)
            if reached != "none":
                await world.until_stage(session, reached)
                world.clock.pass_(seconds - 1)
            else:
                world.clock.pass_(seconds - 11)
            await world.until_checked()
            assert (await world.vm_of(session)).state == "starting"
            world.clock.pass_(1)
            reason, vm = await failed(world, session)
        words = f"stage {awaited} was not reached within {seconds} s; the last stage was {reached}"
        assert reason.startswith(words)
        assert vm.stage == reached
        assert bool(vm.serial_tail) is (reached != "none")

    play(worlds(tmp_path, kind=SlowVm), scenario)


def test_vm_that_waits_for_a_cpu_has_longer_to_boot(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        session = await world.start()
        async with world.driving():
            fake = await world.host.hypervisor.started(2)
            await fake.reach("kernel")
            await world.until_stage(session, "kernel")
            await world.until_checked()
            # Its deadline of 120 s is over by the clock, but it waited for half of the time.
            fake.cpu = ThreadTimes(ran=90, waited=90)
            world.clock.pass_(180)
            await world.until_checked()
            await fake.reach("init")
            await world.until_stage(session, "init")
        # Another process takes over, and sees the VM for the first time.
        fake.cpu = ThreadTimes(ran=110, waited=250)
        world.clock.pass_(180)
        async with world.driving():
            await world.until_checked()
            await fake.reach("ready")
            await world.until_session(session, "vm_created")

    play(worlds(tmp_path, kind=SlowVm), scenario)


def test_starved_vm_fails_at_last_and_blames_the_machine(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        session = await world.start()
        async with world.driving():
            fake = await world.host.hypervisor.started(2)
            await fake.reach("kernel")
            await world.until_stage(session, "kernel")
            await world.until_checked()
            fake.cpu = ThreadTimes(ran=20, waited=460)
            world.clock.pass_(480)
            reason, _ = await failed(world, session)
        assert reason.startswith("the machine is too busy: the VM waited 460 s of 480 s for a CPU")
        assert "stage init was not reached within 120 s" in reason

    play(worlds(tmp_path, kind=SlowVm), scenario)


def test_sick_vm_that_waits_for_a_cpu_has_more_checks(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        class StarvedVm(SickVm):
            def health(self) -> HealthReply:
                self.cpu = ThreadTimes(ran=self.cpu.ran + 6, waited=self.cpu.waited + 4)
                world.clock.pass_(10)
                return super().health()

        world.host.hypervisor.next.append(StarvedVm)
        session = await world.start()
        async with world.driving():
            await world.until_session(session, "vm_created")
            reason, vm = await failed(world, session)
        assert vm.failed_checks > 3
        assert reason.startswith(f"{vm.failed_checks} health checks in a row failed; the VM waited")
        assert reason.endswith("for a CPU: vnc: port 5901 is closed")

    play(worlds(tmp_path), scenario)


@pytest.mark.parametrize(
    ("check", "failed_checks"),
    [
        (3, 3),  # the last good one: those that failed had all the time that they need
        (4, 4),  # the first one that failed
    ],
)
def test_cpu_wait_counts_from_last_good_check(
    tmp_path: Path, check: int, failed_checks: int
) -> None:
    async def scenario(world: World) -> None:
        class OnceStarvedVm(HealthyVm):
            """Waits for a CPU before one check; is well for the first 3."""

            def health(self) -> HealthReply:
                if self.asked == check:
                    self.cpu = ThreadTimes(waited=9)
                if self.asked > 3:
                    self.sicken()
                world.clock.pass_(10)
                return super().health()

        world.host.hypervisor.next.append(OnceStarvedVm)
        session = await world.start()
        async with world.driving():
            _, vm = await failed(world, session)
        assert vm.failed_checks == failed_checks

    play(worlds(tmp_path), scenario)


def test_vm_without_network_fails_at_its_deadline(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        session = await world.start()
        async with world.driving():
            await world.until_stage(session, "services")
            world.clock.pass_(301)
            reason, vm = await failed(world, session)
        assert "stage ready was not reached within 300 s; the last stage was services" in reason
        assert "its agent does not answer" in reason
        assert "127." not in reason
        assert "polydev: ready after" in (vm.serial_tail or "")

    play(worlds(tmp_path, kind=NoNetworkVm), scenario)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (PanicsVm, "kernel panic: Attempted to kill init!"),
        (DyingVm, "the VM ended by itself: exit-code 1: qemu: could not open disk.qcow2"),
        (RefusedVm, "it could not be started: microvm@2 was refused"),
        (NoSpaceVm, "it could not be started: starting the VM in slot 2 failed: No space left"),
        (WrongAgentVm, "answers at its address"),
        (FailedServiceVm, "its services failed: browser: the unit has failed: start-limit-hit"),
    ],
)
def test_hopeless_vm_fails_at_once_with_its_reason(
    tmp_path: Path, kind: type[FakeVm], words: str
) -> None:
    async def scenario(world: World) -> None:
        session = await world.start()
        async with world.driving():
            reason, vm = await failed(world, session)
            assert words in reason
            # The slot can be used by the next session.
            world.host.hypervisor.of_slot[2] = FakeVm
            other = await world.start()
            await world.until_session(other, "vm_created")
            assert (await world.vm_of(other)).slot == 2
        if kind is FailedServiceVm:
            assert vm.failed_units == ("polydev-browser.service",)

    play(worlds(tmp_path, kind=kind), scenario)


def test_failed_units_are_read_from_the_console(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        session = await world.start()
        async with world.driving():
            fake = await world.host.hypervisor.started(2)
            await fake.reach("init")
            fake.say("[FAILED] Failed to start systemd-networkd.service - Network.\n")
            await world.until_stage(session, "init")
            world.clock.pass_(120)
            _, vm = await failed(world, session)
        assert vm.failed_units == ("systemd-networkd.service",)
        assert "systemd-networkd.service" in (vm.serial_tail or "")

    play(worlds(tmp_path, kind=SlowVm), scenario)


def test_agent_health_counts_if_console_is_silent(tmp_path: Path) -> None:
    class SilentVm(FakeVm):
        def say(self, text: str) -> None:
            super().say("")

    async def scenario(world: World) -> None:
        session = await world.start()
        async with world.driving():
            await world.until_session(session, "vm_created")

    play(worlds(tmp_path, kind=SilentVm), scenario)


@pytest.mark.parametrize("state", ["vm_starting", "vm_created"])
def test_vm_killed_from_outside(tmp_path: Path, state: str) -> None:
    async def scenario(world: World) -> None:
        session = await world.start()
        async with world.driving():
            fake = await world.host.hypervisor.started(2)
            await fake.reach("ready" if state == "vm_created" else "kernel")
            await world.until_session(session, state)
            fake.die("signal 9")
            reason, _ = await failed(world, session)
        assert reason == "the VM ended by itself: signal 9"

    play(worlds(tmp_path, kind=SlowVm), scenario)


def test_vm_with_mute_agent_fails_at_its_deadline(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        session = await world.start()
        async with world.driving():
            fake = await world.host.hypervisor.started(2)
            fake.mute = True
            await fake.reach("ready")
            await world.until_stage(session, "services")
            world.clock.pass_(300)
            reason, _ = await failed(world, session)
        assert "its agent did not answer within 0.2 s" in reason

    checks = {"every_seconds": 0.01, "timeout_seconds": 0.2, "failures": 3}
    play(worlds(tmp_path, kind=SlowVm, vm_check=checks), scenario)


def test_failed_stop_is_retried(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        session = await world.start()
        async with world.driving():
            await world.until_session(session, "vm_created")
            await world.sessions.apply(session.id, "terminate")
            await world.until_released(session)
            await world.assert_nothing_left()
        assert world.host.hypervisor.calls.count("stop 2") >= 2

    play(worlds(tmp_path, kind=StubbornVm), scenario)


def test_slot_is_released_even_if_files_are_left(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        session = await world.start()
        discard = world.host.hypervisor.discard

        async def leave(slot: int, vm_id: str, *, keep_logs: bool) -> None:
            await discard(slot, vm_id, keep_logs=keep_logs)
            if vm_id == session.vm_id:
                raise FilesLeft(f"files of VM {vm_id} could not be removed: 'hidden'")

        async with world.driving():
            await world.until_session(session, "vm_created")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(world.host.hypervisor, "discard", leave)
                await world.sessions.apply(session.id, "terminate")
                assert (await world.until_released(session)).state == "ended"
                following = await world.start()
                assert (await world.vm_of(following)).slot == 2
                await world.until_session(following, "vm_created")

    play(worlds(tmp_path, slots=[2]), scenario)


def test_sick_vm_fails_after_its_checks(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        session = await world.start()
        async with world.driving():
            await world.until_session(session, "vm_created")
            reason, vm = await failed(world, session)
        assert reason == "3 health checks in a row failed: vnc: port 5901 is closed"
        assert vm.failed_checks == 3

    play(worlds(tmp_path, kind=SickVm), scenario)


def test_vm_with_closed_browser_gets_time_to_restart_it(
    tmp_path: Path,
) -> None:
    async def scenario(world: World) -> None:
        session = await world.start()
        async with world.driving():
            await world.until_session(session, "vm_created")
            fake = world.host.hypervisor.vms[2]
            fake.services["polydev-browser.service"] = {
                "active": "activating",
                "sub": "start-post",
                "result": "success",
                "restarts": 6,
            }
            fake.sicken("browser", "polydev-browser.service is activating/start-post, 6 restarts")
            seen = fake.asked

            async def checked_often() -> bool:
                return fake.asked > seen + 5

            await until(checked_often, "more checks")
            assert (await world.vm_of(session)).failed_checks == 0
            world.clock.pass_(300)
            reason, _ = await failed(world, session)
        assert reason.startswith(
            "3 health checks in a row failed: browser: polydev-browser.service"
        )

    # There is no viewer.
    play(worlds(tmp_path, session={"idle_seconds": 900}), scenario)


def test_sick_vm_is_kept_while_session_has_a_viewer(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        session = await world.start()
        async with world.driving():
            await world.until_session(session, "vm_created")
            await world.sessions.heartbeat(session.id)
            fake = world.host.hypervisor.vms[2]
            fake.sicken()
            told = await world.until_news(session, "unhealthy")
            assert "vnc: port 5901 is closed" in str(told.data["reason"])
            seen = fake.asked

            async def looked_on() -> bool:
                return fake.asked > seen + 3

            await until(looked_on, "more checks")
            assert (await world.vm_of(session)).state == "ready"
            fake.recover()
            await world.until_news(session, "healthy")
            assert len(await world.news(session, "unhealthy")) == 1
            fake.sicken()
            world.clock.pass_(31)  # nobody looks any more
            await failed(world, session)

    play(worlds(tmp_path), scenario)


def test_debug_preserve_vms_keeps_sick_vm(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        session = await world.start()
        async with world.driving():
            await world.until_news(session, "unhealthy")
            fake = world.host.hypervisor.vms[2]
            seen = fake.asked

            async def looked_on() -> bool:
                return fake.asked > seen + 3

            await until(looked_on, "more checks")
            assert (await world.vm_of(session)).state == "ready"

    play(worlds(tmp_path, kind=SickVm, debug_preserve_vms=True), scenario)


def test_debug_preserve_vms_keeps_vm_that_did_not_boot(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        session = await world.start()
        async with world.driving() as driver:
            await world.until_stage(session, "kernel")
            world.clock.pass_(121)
            await world.until_session(session, "failed")
            await driver.more_turns()
            assert 2 in world.host.hypervisor.running()
            assert (await world.vm_of(session)).state == "stopping"
            world.host.hypervisor.vms[2].end()
            await world.until_released(session)

    play(worlds(tmp_path, kind=NeverBootsVm, debug_preserve_vms=True), scenario)


def test_session_without_heartbeat_expires_and_its_vm_ends(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        session = await world.start()
        async with world.driving() as driver:
            await world.until_session(session, "vm_created")
            world.clock.pass_(299)
            await world.sessions.heartbeat(session.id)
            world.clock.pass_(299)
            await driver.more_turns()
            assert (await world.sessions.get(session.id)).is_live
            world.clock.pass_(1)
            expired = await world.until_session(session, "expired")
            assert expired.reason
            await world.until_released(session)
            await world.assert_nothing_left()

    play(worlds(tmp_path), scenario)


def test_error_in_one_slot_does_not_affect_others(tmp_path: Path) -> None:
    """Every hypervisor call for slot 2 raises; slot 3 works normally."""

    async def scenario(world: World) -> None:
        hypervisor = world.host.hypervisor
        poll = hypervisor.poll

        async def broken(slot: int) -> object:
            if slot == 2:
                raise KeyError("a bug")
            return await poll(slot)

        hypervisor.poll = broken  # type: ignore[method-assign, assignment]
        first, second = await world.start(), await world.start()
        async with world.driving():
            await world.until_session(second, "vm_created")
            found = await world.until_session(first, "failed")
            assert found.reason == (
                "it could not be started: an unexpected KeyError; "
                "the controller's log has the details"
            )
            hypervisor.poll = poll  # type: ignore[method-assign]
            await world.until_released(first)
            assert (await world.vm_of(second)).state == "ready"

    play(worlds(tmp_path), scenario)


def test_unreachable_hypervisor_ends_no_ready_vm(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        hypervisor = world.host.hypervisor
        poll, seen = hypervisor.poll, []

        async def away(slot: int) -> object:
            seen.append(slot)
            raise VmError("D-Bus is away")

        session = await world.start()
        async with world.driving():
            await world.until_session(session, "vm_created")
            hypervisor.poll = away  # type: ignore[method-assign, assignment]

            async def often() -> bool:
                return len(seen) > 8

            await until(often, "looks in vain")
            hypervisor.poll = poll  # type: ignore[method-assign]
            asked = hypervisor.vms[2].asked

            async def goes_on() -> bool:
                return hypervisor.vms[2].asked > asked

            await until(goes_on, "the next check")
            assert (await world.vm_of(session)).state == "ready"

    play(worlds(tmp_path), scenario)


def test_logs_of_failed_vms_are_deleted_after_a_day(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        session = await world.start()
        async with world.driving():
            await failed(world, session)
            console = world.host.hypervisor.console(2, session.vm_id)
            assert console.is_file()
            world.clock.pass_(24 * 3600)

            async def gone() -> bool:
                return not console.exists()

            await until(gone, "the end of the logs")
            await world.assert_nothing_left()

    play(worlds(tmp_path, kind=PanicsVm), scenario)


@pytest.mark.parametrize("days", [2, 0])
def test_ended_sessions_are_deleted_after_keep_ended_days(tmp_path: Path, days: int) -> None:
    async def scenario(world: World) -> None:
        over = await world.start()
        async with world.driving():
            await world.until_session(over, "vm_created")
            await world.sessions.apply(over.id, "terminate")
            await world.until_released(over)
        world.clock.pass_(2 * 24 * 3600 + 1)
        live = await world.start()
        async with world.driving():
            await world.until_session(live, "vm_created")

            async def forgotten() -> bool:
                return [each.id for each in await world.sessions.list()] == [live.id]

            if days:
                await until(forgotten, "the end of what is kept")
            assert bool(days) is await forgotten()
            await world.sessions.apply(live.id, "terminate")
            await world.until_released(live)

    play(worlds(tmp_path, keep_ended_days=days), scenario)

"""VMs that the driver resumes from a template, and those that boot instead."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from polydev.controller.entities import BEING_MADE, Session, Vm
from polydev.controller.machines.hypervisor import Launch, Origin, TemplatesReport
from polydev.controller.machines.vm_driver_timing import Intervals
from polydev.errors import ConfigError
from tests.driving import QUICK, World, play, until, worlds
from tests.vms import (
    IMAGE_DIGEST,
    DiesAsCloneVm,
    FakeVm,
    GarbledScreenVm,
    HealthyVm,
    NoIdentityVm,
    SilentScreenVm,
    UnloadableVm,
)

TEMPLATE, OLDER = "7e" * 32, "01de" * 16


@asynccontextmanager
async def created(world: World, intervals: Intervals = QUICK) -> AsyncIterator[tuple[Session, Vm]]:
    """A session under a running driver, and its ready VM."""
    session = await world.start()
    async with world.driving(intervals=intervals):
        await world.until_session(session, "vm_created")
        yield session, await world.vm_of(session)


def test_session_gets_clone_with_receipt(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.host.hypervisor.use_template(TEMPLATE)
        async with created(world) as (session, vm):
            assert (vm.state, vm.stage, vm.template) == ("ready", "ready", TEMPLATE)
            assert vm.receipt is not None
            assert (vm.receipt["vm_id"], vm.receipt["session_id"]) == (vm.id, session.id)
            calls = [call for call in world.host.hypervisor.calls if not call.startswith("discard")]
            assert calls == ["start 2", "resume 2", "identify 2"]
            # Health checks find the identity that it was given.
            fake, asked = world.host.hypervisor.vms[2], world.host.hypervisor.vms[2].asked

            async def asked_again() -> bool:
                return fake.asked > asked + 3

            await until(asked_again, "checks")
            assert (await world.vm_of(session)).state == "ready"
            assert not await world.news(session, "booting")

    play(worlds(tmp_path, templates=True), scenario)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (UnloadableVm, "it could not be resumed: microvm@2 did not start"),
        (NoIdentityVm, "it could not be resumed: the guest's answer did not end within 45 s"),
        (DiesAsCloneVm, "it could not be resumed: VM "),
        (GarbledScreenVm, "it could not be resumed: the VM's screen does not speak RFB"),
        (
            SilentScreenVm,
            "it could not be resumed: the greeting of the VM's screen did not end within 0.",
        ),
    ],
)
def test_failed_clone_boots_instead_and_reports_why(
    tmp_path: Path, kind: type[FakeVm], reason: str
) -> None:
    async def scenario(world: World) -> None:
        world.host.hypervisor.use_template(TEMPLATE)
        # Only a screen that stays silent is waited for to the end.
        intervals = replace(QUICK, screen_limit=0.3) if kind is SilentScreenVm else QUICK
        async with created(world, intervals) as (session, vm):
            assert (vm.template, vm.receipt) == (None, None)
            assert (vm.boots_because or "").startswith(reason)
            assert set(vm.timings) >= {"kernel", "ready"}
            (told,) = await world.news(session, "booting")
            assert told.data == {"because": vm.boots_because}
            lately = world.clock() - timedelta(seconds=1)
            assert await world.vms.not_resumed(lately) == (1, vm.boots_because)
            assert await world.vms.not_resumed(world.clock() + timedelta(seconds=1)) == (0, "")

    play(worlds(tmp_path, kind=kind, templates=True), scenario)


def test_vm_without_template_boots_and_reports_why(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        async with created(world) as (_, vm):
            assert vm.boots_because == "its image has no template"
            assert world.host.hypervisor.calls[:1] == ["start 2"]

    play(worlds(tmp_path, templates=True), scenario)


def test_clone_uses_the_image_of_the_serving_template(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.host.hypervisor.use_template(TEMPLATE, OLDER)
        async with created(world) as (_, vm):
            assert (vm.image_digest, vm.template) == (OLDER, TEMPLATE)
            assert world.host.hypervisor.vms[2].launch.image_digest == OLDER

    play(worlds(tmp_path, templates=True), scenario)


def test_boot_while_template_is_being_made_is_not_counted(
    tmp_path: Path,
) -> None:
    async def scenario(world: World) -> None:
        hypervisor = world.host.hypervisor
        origin = Origin("5e" * 32, because=BEING_MADE)
        hypervisor.report = replace(hypervisor.report, origin=origin)
        async with created(world) as (_, vm):
            assert (vm.boots_because, vm.template) == (BEING_MADE, None)
            # The image that is golden now, not the one of the session's request.
            assert vm.image_digest == hypervisor.vms[2].launch.image_digest == "5e" * 32
            assert await world.vms.not_resumed(world.clock() - timedelta(seconds=1)) == (0, "")

    play(worlds(tmp_path, templates=True), scenario)


def test_vm_boots_if_templates_cannot_be_listed(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        async def unknown() -> TemplatesReport:
            raise ConfigError("program not found: qemu-system-x86_64")

        world.host.hypervisor.templates = unknown  # type: ignore[method-assign]
        async with created(world) as (_, vm):
            assert vm.boots_because == "program not found: qemu-system-x86_64"

    play(worlds(tmp_path, templates=True), scenario)


def test_vm_boots_without_reason_if_templates_are_off(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.host.hypervisor.use_template(TEMPLATE)
        async with created(world) as (_, vm):
            assert (vm.template, vm.boots_because) == (None, None)

    play(worlds(tmp_path), scenario)


@pytest.mark.parametrize("done", ["noted", "started", "launched", "resumed", "identified"])
def test_next_driver_gives_clone_its_identity(tmp_path: Path, done: str) -> None:
    """The former controller ended after one of its steps; the next one continues from there."""

    async def scenario(world: World) -> None:
        hypervisor = world.host.hypervisor
        hypervisor.use_template(TEMPLATE)
        session = await world.start()
        vm = await world.vm_of(session)
        await world.vms.resumes(vm.id, IMAGE_DIGEST, TEMPLATE)
        if done != "noted":
            await hypervisor.start(Launch(vm.id, vm.slot, vm.image_digest, session.id, TEMPLATE))
        if done in ("launched", "resumed", "identified"):
            await world.vms.launched(vm.id)
        if done in ("resumed", "identified"):
            await hypervisor.resume(vm.slot, vm.id)
        if done == "identified":
            hypervisor.vms[vm.slot].said_vm_id = vm.id
        async with world.driving():
            await world.until_session(session, "vm_created")
            found = await world.vm_of(session)
            assert found.receipt is not None
            assert found.receipt["session_id"] == session.id
            assert hypervisor.calls.count("start 2") == 1

    play(worlds(tmp_path, kind=HealthyVm, templates=True), scenario)

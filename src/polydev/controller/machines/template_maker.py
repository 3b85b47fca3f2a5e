"""Make the template of this host's golden image: boot it, save it, try a clone of it.

    golden image -> VM on a TAP of this network namespace -> settled, saved -> clone -> added

It runs in a network namespace of its own, where nothing else has the guest's usual address.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from polydev.controller.machines.agent_answers import AgentHealth
from polydev.controller.machines.agent_client import AgentClient
from polydev.controller.machines.boot_progress import ConsoleParser
from polydev.controller.machines.template_selection import (
    WantedTemplate,
    templates_of,
    wanted_template,
)
from polydev.controller.machines.vm_logs import LogReader
from polydev.controller.machines.vm_next_step import agent_problem, with_details
from polydev.controller.settings import BootDeadlines, ControllerSettings
from polydev.errors import Error, VmError
from polydev.host_layout import GATEWAY_MAC, GUEST_ADDRESS, GUEST_GATEWAY
from polydev.image_layout import IMAGES
from polydev.processes import run
from polydev.vm import template
from polydev.vm.config import MemoryFile, VmConfig
from polydev.vm.cpu_time import CpuWatch
from polydev.vm.cpu_wait_time import CpuWait, verdict
from polydev.vm.identity import new_identity
from polydev.vm.launch import held
from polydev.vm.qemu_process import Machine, start
from polydev.vm.template_client import DISK, FILES, MEMORY, STATE, copy_data
from polydev.vm.template_store import Build, Template, TemplateStore, file_sums
from polydev.vm.untrusted_files import descriptor_path

TAP = "tap0"
POLL_SECONDS = 1.0
AGENT_SECONDS = 10.0
CLONE_SECONDS = 60.0


def make_template(
    settings: ControllerSettings, report: Callable[[str], None]
) -> tuple[Template, bool]:
    """Return the golden image's template, and whether it was made now.

    It is made if there is none, or if a new one was asked for; other templates of the image are
    removed. If another process makes one, this waits for it. Raises ImageError, and VmError with
    the reason if the VM or its clone did not become ready.
    """
    templates = templates_of(settings)
    with templates.building(
        lambda: report("another build of a template is under way: waiting for it to end")
    ):
        wanted = wanted_template(settings)
        known = templates.find(wanted.key)
        if templates.take_again() or known is None:
            made = _build(settings, wanted, templates, report)
            _remove_old(settings, templates, made)
            return made, True
        _remove_old(settings, templates, known)
        return known, False


def _build(
    settings: ControllerSettings,
    wanted: WantedTemplate,
    templates: TemplateStore,
    report: Callable[[str], None],
) -> Template:
    """Make the template, and note each step of the build beside it."""
    build = Build(wanted.key, wanted.config.image_digest, round(time.time(), 3), "starting its VM")

    def go_on(step: str) -> None:
        nonlocal build
        report(step)
        build = replace(build, step=step)
        templates.note(build)

    go_on(build.step)
    failure: Error
    try:
        made = asyncio.run(_make(settings, wanted, templates, go_on))
    except OSError as error:
        failure = VmError(f"{error.filename or 'the template'}: {error.strerror}")
        failure.__cause__ = error
    except Error as error:
        failure = error
    else:
        templates.note(replace(build, ended_at=round(time.time(), 3)))
        return made
    templates.note(replace(build, ended_at=round(time.time(), 3), error=failure.message))
    raise failure


def _remove_old(settings: ControllerSettings, templates: TemplateStore, kept: Template) -> None:
    """Remove the templates of images that are gone, and older ones of this image."""
    images = settings.image_store / IMAGES
    for each in templates.all():
        is_same = each.image_digest == kept.image_digest
        if each.key != kept.key and (is_same or not (images / each.image_digest).exists()):
            templates.remove(each.key)


async def _make(
    settings: ControllerSettings,
    wanted: WantedTemplate,
    templates: TemplateStore,
    report: Callable[[str], None],
) -> Template:
    began = time.monotonic()
    add_tap()
    agent = AgentClient(AGENT_SECONDS)
    try:
        with templates.incoming() as folder, held(wanted.config.rootfs.parent) as hold:
            memory = MemoryFile(folder / MEMORY, private=False)
            config = replace(wanted.config, folder=folder, memory_file=memory)
            with running(config, (hold,)) as machine:
                await _booted(machine, agent, settings.boot_deadline_seconds, report)
                booted = time.monotonic()
                report("waiting until the guest is at rest")
                await asyncio.to_thread(template.settle, machine.cpu_sample, machine.alive)
                report("saving memory and devices")
                await template.save(config.qmp_socket, folder / STATE)
            made = Template(
                key=wanted.key,
                image_digest=config.image_digest,
                qemu=wanted.qemu,
                accelerator=config.accelerator,
                cpus=config.cpus,
                memory_mib=config.memory_mib,
                files=file_sums(folder),
                made_at=round(time.time(), 3),
                boot_seconds=round(booted - began, 3),
                seconds=0.0,
            )
            report("trying a clone")
            await _try_clone(config, hold, agent)
            made = replace(made, seconds=round(time.monotonic() - began, 3))
            for path in folder.iterdir():
                if path.name not in FILES:
                    path.unlink()
            templates.add(folder, made)
    finally:
        await agent.close()
    return made


@contextmanager
def running(config: VmConfig, pass_fds: tuple[int, ...]) -> Iterator[Machine]:
    """Run a VM until the end of the block."""
    machine = start(config, pass_fds)
    try:
        yield machine
    finally:
        machine.stop()


async def _booted(
    machine: Machine, agent: AgentClient, deadlines: BootDeadlines, report: Callable[[str], None]
) -> None:
    """Wait until the guest's agent says ready. Raises VmError with the reason if it does not."""
    console, serial, cpu = (
        LogReader(machine.config.serial_log),
        ConsoleParser(),
        machine.watch_cpu(),
    )
    limit = sum(deadlines.model_dump().values())
    told: set[str] = set()
    while True:
        serial.feed(console.read())
        for stage in sorted(serial.seen - told):
            report(f"boot stage {stage}")
        told |= serial.seen
        has_network = not serial.seen.isdisjoint(("network", "services", "ready"))
        answer = await agent.health_or_error(GUEST_ADDRESS) if has_network else None
        if isinstance(answer, AgentHealth) and answer.status == "ready":
            return
        why = serial.boot_error or _too_late(cpu.total(), limit)
        if not machine.alive():
            why = f"its VM ended: {machine.qemu_said() or 'QEMU wrote no message'}"
        if why:
            raise VmError(with_details(why, agent_problem(answer)))
        await asyncio.sleep(POLL_SECONDS)


def _too_late(wait: CpuWait, limit: float) -> str | None:
    if verdict(wait, limit) == "in time":
        return None
    return f"the guest was not ready within {limit:g} s; {wait}"


async def _try_clone(config: VmConfig, hold: int, agent: AgentClient) -> None:
    """Resume a clone and give it an identity. Raises VmError if it does not take that on."""
    template_disk = (config.folder / DISK).open("rb")
    memory = (config.folder / MEMORY).open("rb")
    state = (config.folder / STATE).open("rb")
    with TemporaryDirectory(dir=config.folder) as name, template_disk, memory, state:
        folder = Path(name)
        with (folder / DISK).open("wb") as copy:
            copy_data(template_disk.fileno(), copy.fileno())
        private = MemoryFile(descriptor_path(memory.fileno()), private=True)
        clone = replace(config, vm_id="trial", folder=folder, memory_file=private)
        with running(clone, (hold, memory.fileno(), state.fileno())) as machine:
            await template.load(clone.qmp_socket, state.fileno())
            await template.run_on(clone.qmp_socket)
            identity = new_identity("trial", "trial")
            await template.give_identity(clone.identity_socket, identity, CLONE_SECONDS)
            answer = await ready_clone(machine.alive, machine.watch_cpu(), agent)
            if (answer.vm_id, answer.session_id) != ("trial", "trial"):
                raise VmError(f"a clone of the template reports the id {answer.vm_id}")


async def ready_clone(alive: Callable[[], bool], cpu: CpuWatch, agent: AgentClient) -> AgentHealth:
    """Wait until the agent of a clone says ready, and return its answer.

    A resumed emulator translates each program again, and a busy machine lets the clone wait, so
    services may at first answer the agent too late. Raises VmError if that does not change.
    """
    while True:
        answer = await agent.health_or_error(GUEST_ADDRESS)
        if not alive():
            raise VmError("a clone of the template ended")
        if isinstance(answer, AgentHealth) and answer.status == "ready":
            return answer
        if _too_late(cpu.total(), CLONE_SECONDS):
            raise VmError(
                with_details("a clone of the template is not ready", agent_problem(answer))
            )
        await asyncio.sleep(POLL_SECONDS)


def add_tap() -> None:
    """Add a TAP with the guest's gateway, as in a slot. Raises CommandError."""
    lines = [
        f"tuntap add dev {TAP} mode tap",
        f"link set {TAP} address {GATEWAY_MAC}",
        f"address add {GUEST_GATEWAY}/30 dev {TAP}",
        f"link set {TAP} up",
    ]
    # Not from /sys: it shows the network namespace in which it was mounted.
    if TAP not in (name for _, name in socket.if_nameindex()):
        run(["ip", "-batch", "-"], input="\n".join(lines) + "\n")

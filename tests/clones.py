"""A template of an image, made as a host makes it, and clones that are resumed from it.

with template_clones(store.path(image.digest), settings) as clones:
    first, second = identify_concurrently([clones.resume(), clones.resume()], first=0)
    first.inside("hostname")
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

from polydev.image.boot import Boot, wait_until_ready
from polydev.image.guest_shell import GuestShell
from polydev.image.image_folder import vm_config
from polydev.image_layout import KERNEL
from polydev.settings import Settings
from polydev.vm import template
from polydev.vm.accelerator import choose_accelerator
from polydev.vm.config import NO_PORTS, MemoryFile, VmConfig
from polydev.vm.identity import Receipt, new_identity
from polydev.vm.qemu_process import Machine, start
from polydev.vm.temp_folders import temp_folder
from polydev.vm.template_client import DISK, MEMORY, STATE
from tests.sessions import PATIENCE_SECONDS

BOOT_SECONDS = 240
SEALED = (MEMORY, STATE)


@dataclass(frozen=True)
class Saved:
    """A template: its folder, and descriptors of sealed copies of memory and state."""

    folder: Path
    config: VmConfig
    memory: int
    state: int


@contextmanager
def shell(machine: Machine) -> Iterator[GuestShell]:
    """A shell in a guest, with long timeouts for a busy machine."""
    with GuestShell(machine.config.console_socket, PATIENCE_SECONDS) as console:
        console.open_shell(PATIENCE_SECONDS)
        yield console


@dataclass(frozen=True)
class Clone:
    machine: Machine
    receipt: Receipt

    def inside(self, command: str) -> str:
        with shell(self.machine) as console:
            return console.run(command).text.strip()


@dataclass
class Clones:
    """Clones of one template; `made` are all of them."""

    saved: Saved
    made: list[Machine] = field(default_factory=list)

    def begin(self, state: int) -> Machine:
        """Start QEMU for a clone that is to load this state."""
        folder = self.saved.folder / f"clone-{len(self.made) + 1}"
        folder.mkdir()
        shutil.copy(self.saved.folder / DISK, folder)
        memory = MemoryFile(Path(f"/proc/self/fd/{self.saved.memory}"), private=True)
        config = replace(self.saved.config, folder=folder, memory_file=memory, ports=NO_PORTS)
        os.lseek(state, 0, os.SEEK_SET)
        self.made.append(start(config, (self.saved.memory, state)))
        return self.made[-1]

    def resume(self) -> Machine:
        """Make a loaded, still paused clone."""
        machine = self.begin(self.saved.state)
        loading = template.load(machine.config.qmp_socket, self.saved.state, PATIENCE_SECONDS)
        asyncio.run(loading)
        return machine


@contextmanager
def template_clones(image: Path, settings: Settings) -> Iterator[Clones]:
    """Boot an image, save its template, and end all its clones afterwards."""
    accelerator = choose_accelerator(image / KERNEL, settings.state / "accelerator.json")
    with temp_folder() as folder:
        memory = MemoryFile(folder / MEMORY, private=False)
        config = vm_config(image, "template", folder, accelerator)
        machine = start(replace(config, test_console=True, memory_file=memory))
        try:
            wait_until_ready(Boot(machine), BOOT_SECONDS, lambda stage: None)
            template.settle(machine.cpu_sample, machine.alive)
            asyncio.run(template.save(machine.config.qmp_socket, folder / STATE))
        finally:
            machine.stop()
        descriptors = [template.sealed(folder / name) for name in SEALED]
        clones = Clones(Saved(folder, machine.config, *descriptors))
        try:
            yield clones
        finally:
            for each in clones.made:
                each.stop()
            for descriptor in descriptors:
                os.close(descriptor)


def identify_concurrently(machines: list[Machine], first: int) -> list[Clone]:
    """Let clones run on and give them their identities, numbered from `first`, at the same time."""

    def identify(machine: Machine, number: int) -> Clone:
        asyncio.run(template.run_on(machine.config.qmp_socket))
        return Clone(machine, identified(machine, f"vm-{number}", f"session-{number}"))

    with ThreadPoolExecutor(len(machines)) as pool:
        return list(pool.map(identify, machines, count(first)))


def identified(machine: Machine, vm_id: str, session_id: str | None) -> Receipt:
    identity = new_identity(vm_id, session_id)
    place = machine.config.identity_socket
    return asyncio.run(template.give_identity(place, identity, PATIENCE_SECONDS))

"""A host of fake VMs: settings, an image store, and a hypervisor.

    async with fake_hosts(tmp_path) as host:
        settings = Settings(**host.settings_values)
        host.hypervisor.next.append(SlowVm)     # what is started next; else `kind`
        ...                                     # something starts a VM in slot 2
        vm = await host.hypervisor.started(2)
        await vm.reach("network")

Each host has a network of 127.0.0.0/8 to itself, so that tests may run side by side.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from polydev.controller.machines.hypervisor import Launch, Origin, SlotState, TemplatesReport
from polydev.errors import VmError
from polydev.host_layout import slot_address
from polydev.vm.cpu_wait_time import CpuSample
from polydev.vm.identity import Identity, Receipt
from tests.fake_vms import (
    RFB_GREETING,
    DiesAsCloneVm,
    DyingVm,
    FailedServiceVm,
    FakeVm,
    GarbledScreenVm,
    HealthyVm,
    NeverBootsVm,
    NoIdentityVm,
    NoNetworkVm,
    NoSpaceVm,
    PanicsVm,
    RefusedVm,
    SickVm,
    SilentScreenVm,
    SlowVm,
    StubbornVm,
    UnloadableVm,
    WrongAgentVm,
)
from tests.images import write_record
from tests.stores import copy_migrated_database

__all__ = [
    "IMAGE_DIGEST",
    "RFB_GREETING",
    "DiesAsCloneVm",
    "DyingVm",
    "FailedServiceVm",
    "FakeHost",
    "FakeHypervisor",
    "FakeVm",
    "GarbledScreenVm",
    "HealthyVm",
    "NeverBootsVm",
    "NoIdentityVm",
    "NoNetworkVm",
    "NoSpaceVm",
    "PanicsVm",
    "RefusedVm",
    "SickVm",
    "SilentScreenVm",
    "SlowVm",
    "StubbornVm",
    "UnloadableVm",
    "WrongAgentVm",
    "fake_hosts",
]

IMAGE_DIGEST = "4f1d" * 16
BOOT_FILES = ("rootfs.ext4", "vmlinux", "initrd.img", "cmdline")
CLAIM_PORT = 4000
FIRST_PID = 1 << 22  # above all that the kernel gives to processes
LOG_FILES = ("serial.log", "qemu.log")


class FakeHypervisor:
    """Hypervisor of fake VMs that lays out files as on a host.

    kind    what is started; `of_slot` overrides it for a slot, `next` for the next starts
    calls   the effects asked for: `start 2`, `stop 2`, `discard 2 <vm id>`
    vms     each slot's latest VM, running or not
    free_memory_mib     what its machine has left
    looks   how often somebody asked for CPU times
    report      of templates: none, so VMs boot, unless a test says otherwise
    """

    def __init__(
        self, root: Path, network: IPv4Network, slots: Sequence[int], kind: type[FakeVm]
    ) -> None:
        self.root = root
        self.network = network
        self.numbers = tuple(slots)
        self.kind = kind
        self.of_slot: dict[int, type[FakeVm]] = {}
        self.next: list[type[FakeVm]] = []
        self.calls: list[str] = []
        self.vms: dict[int, FakeVm] = {}
        self.looks = 0
        self.free_memory_mib = 1e6
        self.report = TemplatesReport(
            IMAGE_DIGEST, "", Origin(IMAGE_DIGEST, because="its image has no template"), ()
        )
        self._changed = asyncio.Condition()

    async def start(self, launch: Launch) -> None:
        self.calls.append(f"start {launch.slot}")
        state = await self.poll(launch.slot)
        if state.runs and state.vm_id == launch.vm_id:
            return
        if state.runs:
            raise VmError(f"slot {launch.slot} runs another VM, {state.vm_id}")
        vm = self._made(launch)
        await vm.begin()
        async with self._changed:
            self._changed.notify_all()

    async def templates(self) -> TemplatesReport:
        return self.report

    def use_template(self, template: str, image_digest: str = IMAGE_DIGEST) -> None:
        """Resume VMs from this template from now on."""
        self.report = replace(self.report, origin=Origin(image_digest, template))

    async def resume(self, slot: int, vm_id: str) -> None:
        self.calls.append(f"resume {slot}")
        vm = self._clone(slot, vm_id)
        vm.is_paused = False
        await vm.boot()

    async def pause(self, slot: int, vm_id: str) -> None:
        self.calls.append(f"pause {slot}")
        self._clone(slot, vm_id).is_paused = True

    async def set_clock(self, slot: int, vm_id: str) -> None:
        self.calls.append(f"set_clock {slot}")
        self._clone(slot, vm_id)

    async def identify(self, slot: int, vm_id: str, identity: Identity) -> Receipt:
        self.calls.append(f"identify {slot}")
        return self._clone(slot, vm_id).take(identity)

    def _clone(self, slot: int, vm_id: str) -> FakeVm:
        vm = self.vms[slot]
        if not vm.runs or self._named(slot) != vm_id:
            raise VmError(f"VM {vm_id} does not run")
        return vm

    async def stop(self, slot: int) -> None:
        self.calls.append(f"stop {slot}")
        vm = self.vms.get(slot)
        if vm is not None and vm.runs:
            await vm.stop()
        elif vm is not None:
            vm.end()  # nothing of it stays, not even that it has failed

    async def poll(self, slot: int) -> SlotState:
        named = self._named(slot)
        vm = self.vms.get(slot)
        if vm is None:
            return SlotState(slot, "inactive", named)
        pid = FIRST_PID + slot if vm.runs else None
        return SlotState(slot, vm.activity, named, pid, vm.detail)

    def cpu_sample(self, pid: int, at: float) -> CpuSample:
        """Return the CPU times of the fake VMs' processes."""
        self.looks += 1
        return CpuSample(at, {pid: self.vms[pid - FIRST_PID].cpu}, cpus=2)

    async def slots(self) -> dict[int, SlotState]:
        states = [await self.poll(slot) for slot in self.numbers]
        return {state.slot: state for state in states if state.vm_id or state.runs}

    async def discard(self, slot: int, vm_id: str, *, keep_logs: bool) -> None:
        self.calls.append(f"discard {slot} {vm_id}")
        if slot in self.vms and self.vms[slot].runs and self._named(slot) == vm_id:
            raise VmError(f"VM {vm_id} still runs")
        self._discard(slot, vm_id, keep_logs)

    async def folders(self) -> set[tuple[int, str]]:
        return {(int(path.parent.name), path.name) for path in self.left() if not path.is_symlink()}

    async def close(self) -> None:
        """Nothing is open."""

    def console(self, slot: int, vm_id: str) -> Path:
        return self.root / str(slot) / vm_id / "serial.log"

    def qemu_log(self, slot: int, vm_id: str) -> Path:
        return self.root / str(slot) / vm_id / "qemu.log"

    async def started(self, slot: int, *, not_vm: str = "") -> FakeVm:
        """Wait until a VM other than `not_vm` was started in the slot."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: slot in self.vms and self.vms[slot].launch.vm_id != not_vm
            )
        return self.vms[slot]

    def running(self) -> dict[int, FakeVm]:
        return {slot: vm for slot, vm in self.vms.items() if vm.runs}

    def left(self) -> list[Path]:
        """Return the VM folders that are left in the slots."""
        return [path for slot in self.numbers for path in (self.root / str(slot)).iterdir()]

    def _made(self, launch: Launch) -> FakeVm:
        folder = self.root / str(launch.slot) / launch.vm_id
        folder.mkdir(exist_ok=True)
        (folder / "disk.qcow2").touch()
        current = folder.with_name("current")
        current.unlink(missing_ok=True)
        current.symlink_to(launch.vm_id)
        kind = self.next.pop(0) if self.next else self.of_slot.get(launch.slot, self.kind)
        vm = kind(launch, str(slot_address(self.network, launch.slot)), folder)
        self.vms[launch.slot] = vm
        return vm

    def _named(self, slot: int) -> str | None:
        current = self.root / str(slot) / "current"
        return str(current.readlink()) if current.is_symlink() else None

    def _discard(self, slot: int, vm_id: str, keep_logs: bool) -> None:
        folder = self.root / str(slot) / vm_id
        if self._named(slot) == vm_id:
            folder.with_name("current").unlink()
        if not keep_logs:
            shutil.rmtree(folder, ignore_errors=True)
        for file in folder.glob("*"):
            if file.name not in LOG_FILES:
                file.unlink()


@dataclass(frozen=True)
class FakeHost:
    """`settings_values` are plain enough for a YAML file; the database is migrated."""

    root: Path
    network: IPv4Network
    settings_values: dict[str, Any]
    hypervisor: FakeHypervisor


@asynccontextmanager
async def fake_hosts(
    root: Path, slots: Sequence[int] = (2, 3, 4), kind: type[FakeVm] = HealthyVm
) -> AsyncIterator[FakeHost]:
    """A host with these slots; end the VMs that still run after the block."""
    with _claimed_network() as network:
        values: dict[str, Any] = {
            "slots": list(slots),
            "vm_network": str(network),
            "vm_root": str(_vm_root(root, slots)),
            "image_store": str(_image_store(root)),
            "boots_at_once": 64,
            "templates": False,
            "database_url": f"sqlite+aiosqlite:///{root / 'controller.sqlite3'}",
        }
        copy_migrated_database(root / "controller.sqlite3")
        hypervisor = FakeHypervisor(root / "microvm", network, slots, kind)
        try:
            yield FakeHost(root, network, values, hypervisor)
        finally:
            for vm in hypervisor.vms.values():
                vm.end()


@contextmanager
def _claimed_network() -> Iterator[IPv4Network]:
    """Claim a /24 of loopback addresses for one test by binding its first address."""
    for number in range(16 * 256, 256 * 256 - 256):
        network = IPv4Network(f"127.{number >> 8}.{number & 255}.0/24")
        with socket.socket() as claim:
            try:
                claim.bind((str(network[1]), CLAIM_PORT))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                raise
            yield network
            return
    raise AssertionError("all of 127.0.0.0/8 is taken")


def _vm_root(root: Path, slots: Sequence[int]) -> Path:
    for slot in slots:
        (root / "microvm" / str(slot)).mkdir(parents=True)
    return root / "microvm"


def _image_store(root: Path) -> Path:
    """A store whose golden image has files, but cannot boot."""
    store = root / "store"
    image = store / "images" / IMAGE_DIGEST
    image.mkdir(parents=True)
    for name in BOOT_FILES:
        (image / name).touch()
    write_record(image)
    (store / "promotions").mkdir()
    (store / "promotions/000001").symlink_to(Path("../images", IMAGE_DIGEST))
    (store / "golden-rootfs.ext4").symlink_to("promotions/000001/rootfs.ext4")
    return store

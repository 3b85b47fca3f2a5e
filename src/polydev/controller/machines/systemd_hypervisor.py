"""VMs as units of the host's systemd: `microvm@N.service` runs the VM of slot N.

<root>/N/<VM's id>/     launch.json, by us; disk, socket and logs, by the unit's own user
<root>/N/current        names the VM that the unit starts, or has started
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar, get_args

from polydev.controller.machines.hypervisor import (
    Activity,
    Launch,
    SlotState,
    TemplatesReport,
)
from polydev.controller.machines.systemd_bus import SystemdBus, UnitActivity
from polydev.controller.machines.template_selection import templates_now
from polydev.controller.machines.vm_folders import clear_folder, folders_in, write_file
from polydev.controller.settings import ControllerSettings
from polydev.errors import FilesLeft, VmError
from polydev.image_layout import IMAGES
from polydev.vm.identity import Identity, Receipt
from polydev.vm.launch_file import CURRENT, LAUNCH_FILE, LaunchFile, launch_file_text
from polydev.vm.template import give_identity, pause, run_on, set_clock
from polydev.vm.untrusted_files import last_bytes, open_untrusted_folder

TEMPLATE_MAKER = "polydev-template.service"
SERIAL_LOG, QEMU_LOG = "serial.log", "qemu.log"
QMP_SOCKET, IDENTITY_SOCKET = "qmp.sock", "identity.sock"
# A guest on a busy host may answer late, but a boot instead would take longer.
IDENTIFY_SECONDS = 45.0
LOGS = (SERIAL_LOG, QEMU_LOG)
ACTIVITIES: tuple[Activity, ...] = get_args(Activity)
TAIL_LINES = 5
MAX_TAIL_BYTES = 4096
# The group lets the user of a slot's VM into the VM's folder, until the VM has ended.
OPEN_TO_VM, SHUT = 0o770, 0o700

P = ParamSpec("P")
T = TypeVar("T")


class SystemdHypervisor:
    """The hypervisor of a deployed host. polkit lets it start and stop these units only."""

    def __init__(self, settings: ControllerSettings, bus: SystemdBus | None = None) -> None:
        # Links in the configured path are followed, but none below it.
        self._root = settings.vm_root.resolve()
        self._images = settings.image_store / IMAGES
        self._sizes = settings.vm
        self._settings = settings
        self._bus = bus or SystemdBus()

    async def start(self, launch: Launch) -> None:
        state = await self.poll(launch.slot)
        if state.runs and state.vm_id != launch.vm_id:
            raise VmError(f"slot {launch.slot} runs another VM, {state.vm_id}")
        if state.activity == "active":
            return
        if not state.runs:
            await _in_thread(self._prepare, launch)
        result = await self._bus.start(unit_of(launch.slot))
        if result != "done":
            raise await self._failure(launch, result)

    async def templates(self) -> TemplatesReport:
        maker = await self._bus.state(TEMPLATE_MAKER)
        runs = maker.active not in ("inactive", "failed")
        ended = f"{TEMPLATE_MAKER} failed: {maker.detail}" if maker.active == "failed" else ""
        return await _in_thread(templates_now, self._settings, being_made=runs, ended=ended)

    async def resume(self, slot: int, vm_id: str) -> None:
        await run_on(self._folder(slot, vm_id) / QMP_SOCKET)

    async def pause(self, slot: int, vm_id: str) -> None:
        await pause(self._folder(slot, vm_id) / QMP_SOCKET)

    async def set_clock(self, slot: int, vm_id: str) -> None:
        await set_clock(self._folder(slot, vm_id) / IDENTITY_SOCKET, IDENTIFY_SECONDS)

    async def identify(self, slot: int, vm_id: str, identity: Identity) -> Receipt:
        place = self._folder(slot, vm_id) / IDENTITY_SOCKET
        return await give_identity(place, identity, IDENTIFY_SECONDS)

    async def stop(self, slot: int) -> None:
        unit = unit_of(slot)
        state = await self._bus.state(unit)
        if state.active not in ("inactive", "failed"):
            await self._bus.stop(unit)
            state = await self._bus.state(unit)
        if state.active == "failed":
            await self._bus.reset_failed(unit)
        elif state.active != "inactive":
            raise VmError(f"{unit} did not stop: it is {state.active}")

    async def poll(self, slot: int) -> SlotState:
        return _slot_state(slot, await self._bus.state(unit_of(slot)), self._current_vm(slot))

    async def slots(self) -> dict[int, SlotState]:
        found = {slot_of(unit) for unit in await self._bus.units("microvm@*.service")}
        found |= {slot for slot in await _in_thread(self._numbers) if self._current_vm(slot)}
        return {slot: await self.poll(slot) for slot in sorted(found)}

    async def discard(self, slot: int, vm_id: str, *, keep_logs: bool) -> None:
        state = await self.poll(slot)
        if state.runs and state.vm_id == vm_id:
            raise VmError(f"VM {vm_id} still runs")
        await _in_thread(self._remove, slot, vm_id, keep_logs)

    async def folders(self) -> set[tuple[int, str]]:
        return await _in_thread(self._folders)

    def console(self, slot: int, vm_id: str) -> Path:
        return self._folder(slot, vm_id) / SERIAL_LOG

    def qemu_log(self, slot: int, vm_id: str) -> Path:
        return self._folder(slot, vm_id) / QEMU_LOG

    async def close(self) -> None:
        """Close the D-Bus connection. VMs run on."""
        await self._bus.close()

    def _folder(self, slot: int, vm_id: str) -> Path:
        return self._root / str(slot) / vm_id

    def _current_vm(self, slot: int) -> str | None:
        try:
            return (self._root / str(slot) / CURRENT).readlink().name
        except OSError:
            return None

    def _prepare(self, launch: Launch) -> None:
        folder = self._folder(launch.slot, launch.vm_id)
        # The folder inherits the group of the slot's folder. The mode is set again, because our
        # umask may have taken away what the VM's user needs.
        folder.mkdir(exist_ok=True)
        with open_untrusted_folder(folder) as inside:
            os.fchmod(inside, OPEN_TO_VM)
            write_file(inside, LAUNCH_FILE, launch_file_text(self._launch_file(launch)))
        fresh = folder.with_name(f".{CURRENT}")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(launch.vm_id)
        fresh.replace(folder.with_name(CURRENT))

    def _launch_file(self, launch: Launch) -> LaunchFile:
        return LaunchFile(
            vm_id=launch.vm_id,
            session_id=launch.session_id,
            image=str(self._images / launch.image_digest),
            image_digest=launch.image_digest,
            cpus=self._sizes.cpus,
            memory_mib=self._sizes.memory_mib,
            translation_cache_mib=self._sizes.translation_cache_mib,
            template=launch.template,
        )

    async def _failure(self, launch: Launch, result: str) -> VmError:
        unit = unit_of(launch.slot)
        if result == "dependency":
            return VmError(
                f"{unit} did not start: the network of its slot is missing",
                f"journalctl -u microvm-slot@{launch.slot}.service",
            )
        state = await self._bus.state(unit)
        said = await _in_thread(_tail, self.qemu_log(launch.slot, launch.vm_id))
        why = ": ".join(filter(None, (state.detail or result, said)))
        return VmError(f"{unit} did not start: {why}", f"journalctl -u {unit}")

    def _remove(self, slot: int, vm_id: str, keep_logs: bool) -> None:
        """Remove a VM's files. Raises FilesLeft if some are left, which other VMs cannot reach."""
        folder = self._folder(slot, vm_id)
        if self._current_vm(slot) == vm_id:
            folder.with_name(CURRENT).unlink(missing_ok=True)
        try:
            with open_untrusted_folder(folder) as inside:
                # The slot's next VM has the same user, which must not reach what is left here.
                os.fchmod(inside, SHUT)
                left = clear_folder(folder, inside, LOGS if keep_logs else ())
        except FileNotFoundError:
            return
        if left:
            raise FilesLeft(
                f"files of VM {vm_id} could not be removed: {left}",
                f"as root on the host: rm -rf {folder}",
            )
        if not keep_logs:
            with suppress(FileNotFoundError):
                folder.rmdir()

    def _numbers(self) -> list[int]:
        return sorted(int(name) for name in folders_in(self._root) if name.isdecimal())

    def _folders(self) -> set[tuple[int, str]]:
        return {
            (slot, name) for slot in self._numbers() for name in folders_in(self._root / str(slot))
        }


def unit_of(slot: int) -> str:
    return f"microvm@{slot}.service"


def slot_of(unit: str) -> int:
    return int(unit.partition("@")[2].removesuffix(".service"))


def _slot_state(slot: int, unit: UnitActivity, vm_id: str | None) -> SlotState:
    # Other states of systemd (reloading, maintenance) are states of a running unit.
    activity: Activity = next((each for each in ACTIVITIES if each == unit.active), "active")
    return SlotState(slot, activity, vm_id, unit.pid, unit.detail)


async def _in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that works on files in a thread. Its OSError becomes a VmError."""
    try:
        return await asyncio.to_thread(work, *args, **kwargs)
    except OSError as error:
        raise VmError(f"{error.filename}: {error.strerror}", "./inv doctor") from error


def _tail(log: Path) -> str:
    """Return the last lines of a VM's log, or why they cannot be read."""
    try:
        lines = last_bytes(log, MAX_TAIL_BYTES).decode(errors="replace").splitlines()
    except VmError as error:
        return error.message
    return "\n".join(lines[-TAIL_LINES:])

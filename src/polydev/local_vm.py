"""The VM that `up` keeps running on this machine.

`vm.json` describes it, so that later calls find it. Only the kernel knows whether it runs.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from polydev.errors import BootError, VmError, VmTimeout
from polydev.image.boot import Boot, wait_until_ready
from polydev.image.image_folder import vm_config
from polydev.image.store import ImageStore
from polydev.image.verify import DEADLINE_SECONDS
from polydev.image_layout import KERNEL
from polydev.settings import Settings
from polydev.vm.accelerator import choose_accelerator
from polydev.vm.boot_stages import Stage, last_lines
from polydev.vm.config import VmConfig
from polydev.vm.cpu_wait_time import CpuWait, verdict
from polydev.vm.health import TIMEOUT_SECONDS, agent_health
from polydev.vm.qemu_process import Machine, start

VM_ID = "local"
VM_FILE = "vm.json"
POLL_SECONDS = 0.5


class LocalVm(BaseModel):
    """A VM of the golden image on this machine, and its addresses."""

    model_config = ConfigDict(frozen=True)

    vm_id: str
    image_digest: str
    pid: int
    config: VmConfig

    @property
    def machine(self) -> Machine:
        return Machine(self.config, self.pid)

    def addresses(self) -> dict[str, str]:
        """Return the addresses of its ports, under the names of `where --json`."""
        ports = self.config.ports
        return {
            "viewer": ports.viewer_url,
            "novnc": ports.novnc_url,
            "vnc": f"{ports.host}:{ports.vnc}",
            "agent": ports.agent_url,
            "serialLog": str(self.config.serial_log),
        }


def find(settings: Settings) -> LocalVm | None:
    """Return the VM that runs now, or None."""
    try:
        vm = LocalVm.model_validate_json(_vm_file(settings).read_text())
    except (FileNotFoundError, ValidationError):
        return None
    return vm if vm.machine.alive() else None


def bring_up(
    digest: str,
    settings: Settings,
    store: ImageStore,
    on_stage: Callable[[Stage], None],
    *,
    outbound: bool = False,
    on_busy: Callable[[CpuWait], None] = lambda wait: None,
) -> tuple[LocalVm, bool]:
    """Return a running, ready VM of the image, and whether this call started it.

    A VM of another image, or one that no longer answers, is replaced. Raises BootError, and
    MachineBusy if the VM got too little CPU time to boot.
    """
    running = find(settings)
    if running is not None:
        if (
            running.image_digest == digest
            and running.config.outbound == outbound
            and _healthy(running)
        ):
            return running, False
        take_down(settings)
    folder = settings.state / "local"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    image = store.path(digest)
    accelerator = choose_accelerator(image / KERNEL, settings.state / "accelerator.json")
    config = replace(vm_config(image, VM_ID, folder, accelerator), outbound=outbound)

    def record(machine: Machine) -> None:
        started = LocalVm(vm_id=VM_ID, image_digest=digest, pid=machine.pid, config=machine.config)
        _vm_file(settings).write_text(started.model_dump_json(indent=1))

    with store.hold(digest) as hold:
        machine = start(config, pass_fds=(hold.fileno(),), record=record)
    vm = LocalVm(vm_id=VM_ID, image_digest=digest, pid=machine.pid, config=machine.config)
    try:
        deadline_seconds = DEADLINE_SECONDS[accelerator]
        wait_until_ready(Boot(machine), deadline_seconds, on_stage, on_busy=on_busy)
    except BaseException as error:
        machine.stop()
        if isinstance(error, BootError):
            tail = "\n  ".join(last_lines(machine.serial()))
            error.hint = f"its console is in {config.serial_log}; the last lines:\n  {tail}"
        raise
    return vm, True


def take_down(settings: Settings) -> bool:
    """End the VM and remove its files; return whether there was one."""
    vm = find(settings)
    if vm is not None:
        vm.machine.stop()
    shutil.rmtree(settings.state / "local", ignore_errors=True)
    return vm is not None


def _healthy(vm: LocalVm) -> bool:
    """Return whether its agent says so; a VM that gets little CPU time has longer for that.

    There the agent may answer late, or that its own checks of the desktop took too long.
    """
    watch = vm.machine.watch_cpu()
    while verdict(watch.total(), TIMEOUT_SECONDS) == "in time":
        try:
            if agent_health(vm.config.ports)[0] == 200:
                return True
        except VmTimeout:
            continue
        except VmError:
            return False
        time.sleep(POLL_SECONDS)
    return False


def _vm_file(settings: Settings) -> Path:
    return settings.state / "local" / VM_FILE

"""KVM or TCG: decided by booting, since /dev/kvm being there proves nothing."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

from polydev.run import end_group, run, spawn
from polydev.vm.config import Accelerator
from polydev.vm.qemu import QEMU

KVM_DEVICE = Path("/dev/kvm")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Under working hardware virtualization the first line comes within a tenth of this.
PROBE_TIMEOUT_SECONDS = 5.0
POLL_SECONDS = 0.1


def probe_argv(kernel: Path, serial: Path) -> list[str]:
    return [
        *(QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "256"),
        *("-kernel", str(kernel), "-append", "console=ttyS0 panic=-1"),
        *("-serial", f"file:{serial}"),
    ]


def choose_accelerator(kernel: Path, memory: Path) -> Accelerator:
    """KVM where a probe VM prints its first line under it, else TCG.

    The answer is remembered in the file `memory` until the machine or its QEMU changes.
    """
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return "tcg"
    situation = [BOOT_ID.read_text().strip(), run([QEMU, "--version"]).stdout]
    try:
        known = json.loads(memory.read_text())
        if known["situation"] == situation:
            return "kvm" if known["kvm"] else "tcg"
    except (FileNotFoundError, ValueError, KeyError):
        pass
    works = kvm_boots(kernel)
    memory.parent.mkdir(parents=True, exist_ok=True)
    memory.write_text(json.dumps({"situation": situation, "kvm": works}))
    return "kvm" if works else "tcg"


def kvm_boots(kernel: Path) -> bool:
    """Whether `kernel` gets as far as its first line under KVM on this machine."""
    with tempfile.TemporaryDirectory(prefix="polydev-kvm-") as folder:
        serial = Path(folder, "serial.log")
        with Path(folder, "qemu.log").open("wb") as log:
            process = spawn(probe_argv(kernel, serial), stdout=log, stderr=log)
        deadline = time.monotonic() + PROBE_TIMEOUT_SECONDS
        try:
            while time.monotonic() < deadline and process.poll() is None:
                if serial.exists() and b"Linux version" in serial.read_bytes():
                    return True
                time.sleep(POLL_SECONDS)
            return False
        finally:
            end_group(process)

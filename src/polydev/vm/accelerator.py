"""KVM or TCG: chosen by booting a kernel under KVM, since a /dev/kvm may not work.

On a host, `polydev-accelerator` chooses once after each start of the host, for all VMs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from polydev.errors import MachineBusy
from polydev.image_layout import GOLDEN_LINK, KERNEL, STORE
from polydev.processes import end_group, run, spawn
from polydev.vm.config import Accelerator
from polydev.vm.qemu_command_line import QEMU

KVM_DEVICE = Path("/dev/kvm")
# On a host: the image whose kernel is booted, and the file for the result.
GOLDEN_IMAGE = STORE / GOLDEN_LINK
FOUND = Path("/run/polydev/accelerator.json")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# With working hardware virtualization the first line comes within a tenth of this time.
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
    """Return KVM if a probe VM prints its first line under it, else TCG.

    The file `memory` keeps the result until the machine restarts or its QEMU changes.
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
    try:
        works = kvm_failure(kernel) is None
    except MachineBusy:
        return "tcg"  # which always works; the next call tries again
    memory.parent.mkdir(parents=True, exist_ok=True)
    memory.write_text(json.dumps({"situation": situation, "kvm": works}))
    return "kvm" if works else "tcg"


def main() -> int:
    """`polydev-accelerator`: boot the golden image's kernel under KVM and write the result."""
    kernel = GOLDEN_IMAGE.resolve().with_name(KERNEL)
    try:
        why = why_no_kvm(kernel)
    except MachineBusy as error:
        # Nothing is written, so the start of the next VM tries again.
        sys.stderr.write(f"{error.message}\n")
        return 1
    found = {"accelerator": "tcg" if why else "kvm", "why": why}
    fresh = FOUND.with_suffix(".new")
    fresh.write_text(json.dumps(found) + "\n")
    fresh.replace(FOUND)
    sys.stdout.write(f"VMs run under {found['accelerator']}{f': {why}' if why else ''}\n")
    return 0


def why_no_kvm(kernel: Path) -> str | None:
    """Return why KVM cannot be used on this machine; None if `kernel` boots under it.

    Raises MachineBusy.
    """
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return (
            f"there is no {KVM_DEVICE}"
            if not KVM_DEVICE.exists()
            else f"no permission to use {KVM_DEVICE}"
        )
    if not kernel.is_file():
        return "there is no image yet to boot"
    failure = kvm_failure(kernel)
    return failure and f"{KVM_DEVICE} exists, but no VM boots with it: {failure}"


def known_accelerator(found: Path = FOUND) -> Accelerator:
    """Return the accelerator that this host chose, or TCG, which always works, before that."""
    try:
        return "kvm" if json.loads(found.read_bytes())["accelerator"] == "kvm" else "tcg"
    except (OSError, ValueError, KeyError, TypeError):
        return "tcg"


def kvm_failure(kernel: Path) -> str | None:
    """Return why `kernel` does not print its first line under KVM here; None if it does.

    Raises MachineBusy if the machine was too busy to tell.
    """
    # These imports are slow, and each start of a VM imports this module.
    import tempfile

    from polydev.vm.cpu_time import CpuWatch, cpu_sample
    from polydev.vm.cpu_wait_time import verdict

    with tempfile.TemporaryDirectory(prefix="polydev-kvm-") as folder:
        serial, log = Path(folder, "serial.log"), Path(folder, "qemu.log")
        with log.open("wb") as output:
            process = spawn(probe_argv(kernel, serial), stdout=output, stderr=output)
        watch = CpuWatch(lambda: cpu_sample(process.pid))
        try:
            while verdict(wait := watch.total(), PROBE_TIMEOUT_SECONDS) == "in time":
                if serial.exists() and b"Linux version" in serial.read_bytes():
                    return None
                if process.poll() is not None:
                    said = log.read_text(errors="replace").strip().splitlines()
                    return f"QEMU ended: {said[0] if said else 'without a message'}"
                time.sleep(POLL_SECONDS)
            if verdict(wait, PROBE_TIMEOUT_SECONDS) == "starved":
                raise MachineBusy("cannot find out whether KVM works", wait)
            return f"the kernel printed nothing for {PROBE_TIMEOUT_SECONDS:g} s"
        finally:
            end_group(process)

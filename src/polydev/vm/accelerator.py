"""KVM or TCG: decided by booting, since /dev/kvm being there proves nothing.

On a host `polydev-accelerator` decides once after each start and writes it down for all VMs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from polydev.errors import MachineBusy
from polydev.image_layout import GOLDEN_LINK, KERNEL, STORE
from polydev.run import end_group, run, spawn
from polydev.vm.config import Accelerator
from polydev.vm.qemu import QEMU

KVM_DEVICE = Path("/dev/kvm")
# On a host: who boots to find out, and where what was found is written.
GOLDEN_IMAGE = STORE / GOLDEN_LINK
FOUND = Path("/run/polydev/accelerator.json")
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
    try:
        works = kvm_failure(kernel) is None
    except MachineBusy:
        return "tcg"  # which always works; the next time is another chance
    memory.parent.mkdir(parents=True, exist_ok=True)
    memory.write_text(json.dumps({"situation": situation, "kvm": works}))
    return "kvm" if works else "tcg"


def main() -> int:
    """`polydev-accelerator`: try the golden image's kernel, and write down what was found."""
    kernel = GOLDEN_IMAGE.resolve().with_name(KERNEL)
    try:
        why = why_no_kvm(kernel)
    except MachineBusy as error:
        # Nothing is written down: the next VM's start has this tried again.
        sys.stderr.write(f"{error.message}\n")
        return 1
    found = {"accelerator": "tcg" if why else "kvm", "why": why}
    fresh = FOUND.with_suffix(".new")
    fresh.write_text(json.dumps(found) + "\n")
    fresh.replace(FOUND)
    sys.stdout.write(f"VMs run under {found['accelerator']}{f': {why}' if why else ''}\n")
    return 0


def why_no_kvm(kernel: Path) -> str | None:
    """What speaks against KVM on this machine; None where `kernel` boots under it.

    Raises MachineBusy.
    """
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return (
            f"{KVM_DEVICE} is not there" if not KVM_DEVICE.exists() else f"no right to {KVM_DEVICE}"
        )
    if not kernel.is_file():
        return "there is no image yet that could be booted"
    failure = kvm_failure(kernel)
    return failure and f"{KVM_DEVICE} is there, but nothing boots under it: {failure}"


def known_accelerator(found: Path = FOUND) -> Accelerator:
    """What this host found out; TCG, which always works, as long as it knows nothing."""
    try:
        return "kvm" if json.loads(found.read_bytes())["accelerator"] == "kvm" else "tcg"
    except (OSError, ValueError, KeyError, TypeError):
        return "tcg"


def kvm_failure(kernel: Path) -> str | None:
    """Why `kernel` does not get as far as its first line under KVM here; None where it does.

    Raises MachineBusy where the machine was too busy to tell.
    """
    # Dear, and every start of a VM imports this module.
    import tempfile

    from polydev.vm.cpu_time import CpuWatch, cpu_sample
    from polydev.vm.cpu_wait import verdict

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
                    return f"QEMU ended: {said[0] if said else 'without a word'}"
                time.sleep(POLL_SECONDS)
            if verdict(wait, PROBE_TIMEOUT_SECONDS) == "starved":
                raise MachineBusy("whether KVM works could not be found out", wait)
            return f"a kernel said nothing for {PROBE_TIMEOUT_SECONDS:g} s"
        finally:
            end_group(process)

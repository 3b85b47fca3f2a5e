"""Checks of the operator's machine: its facts, and the findings from them."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polydev.client.doctor_findings import (
    GIB,
    KVM_TODO,
    TCG_TEXT,
    DiskSpace,
    DoctorFinding,
    Room,
    qemu_finding,
    space_finding,
)
from polydev.errors import Error
from polydev.processes import Orphan, orphans, run
from polydev.settings import Settings
from polydev.vm.accelerator import KVM_DEVICE, choose_accelerator
from polydev.vm.config import Accelerator
from polydev.vm.qemu_command_line import QEMU
from polydev.vm.temp_folders import abandoned_temp_folders

WHERE = "this machine"
OLDEST_PYTHON = (3, 10)
BUILD_ROOM = Room(least=2 * GIB, enough=8 * GIB)  # a build needs as much
STORE_ROOM = Room(least=2 * GIB, enough=6 * GIB)  # an image has about 2 GB
INSTALLED = "installed"


@dataclass(frozen=True)
class MachineFacts:
    """Facts of this machine.

    packages        required package → version, None if not installed; None without dpkg
    accelerator     what VMs run under; None if that could not be tried
    orphans         processes of ours whose owner was killed
    scratch         folders of VMs whose owner was killed
    kvm_device      whether /dev/kvm exists and we may use it
    """

    packages: dict[str, str | None] | None
    python: tuple[int, int, int]
    is_root: bool
    qemu: str | None
    kvm_device: bool
    accelerator: Accelerator | None
    store: DiskSpace | None
    cache: DiskSpace | None
    orphans: tuple[Orphan, ...] = ()
    scratch: tuple[Path, ...] = ()


def gather(settings: Settings, packages: list[str], kernel: Path | None) -> MachineFacts:
    """Gather the facts. `kernel` is booted to try KVM; None if there is no image yet."""
    device = os.access(KVM_DEVICE, os.R_OK | os.W_OK)
    return MachineFacts(
        packages=_installed(packages),
        python=sys.version_info[:3],
        is_root=os.geteuid() == 0,
        qemu=_said([QEMU, "--version"]),
        kvm_device=device,
        accelerator=_accelerator(kernel, settings) if kernel or not device else None,
        store=disk_of(settings.store),
        cache=disk_of(settings.cache),
        orphans=tuple(orphans()),
        scratch=tuple(abandoned_temp_folders()),
    )


def wanted_packages(text: str) -> list[str]:
    """Return the names in a file like requirements/apt.txt."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def disk_of(folder: Path) -> DiskSpace | None:
    """Return the space where `folder` is, or would be created."""
    there = next((each for each in (folder, *folder.parents) if each.is_dir()), None)
    if there is None:
        return None
    usage = shutil.disk_usage(there)
    return DiskSpace(usage.total, usage.free)


def _accelerator(kernel: Path | None, settings: Settings) -> Accelerator | None:
    try:
        return choose_accelerator(kernel or Path(os.devnull), settings.state / "accelerator.json")
    except (Error, OSError):
        return None


def _said(argv: list[str]) -> str | None:
    try:
        return run(argv, timeout_seconds=20).stdout
    except Error:
        return None


def _installed(packages: list[str]) -> dict[str, str | None] | None:
    form = "${Package}\t${db:Status-Status}\t${Version}\n"
    try:
        # It exits with 1 if it does not know one of them, but lists the others.
        said = run(["dpkg-query", "-W", "-f", form, *packages], check=False).stdout
    except Error:
        return None
    rows = [line.split("\t") for line in said.splitlines()]
    known = {row[0]: row[2] for row in rows if len(row) == 3 and row[1] == INSTALLED}
    return {name: known.get(name) for name in packages}


def machine_findings(facts: MachineFacts) -> list[DoctorFinding]:
    return [
        packages_finding(facts.packages),
        python_finding(facts.python),
        rights_finding(is_root=facts.is_root),
        qemu_finding(WHERE, facts.qemu, "apt-get install --no-install-recommends qemu-system-x86"),
        kvm_finding(facts),
        space_finding(WHERE, "room for images", facts.store, STORE_ROOM, "./inv golden.prune"),
        space_finding(
            WHERE,
            "room for builds",
            facts.cache,
            BUILD_ROOM,
            "./inv golden.prune, or set POLYDEV_CACHE to a larger disk",
        ),
        *leftovers_findings(facts.orphans, facts.scratch),
    ]


def packages_finding(packages: dict[str, str | None] | None) -> DoctorFinding:
    if packages is None:
        return DoctorFinding(
            WHERE,
            "packages",
            "problem",
            "no dpkg-query: this is not Debian or Ubuntu",
            "use Debian 12 or Ubuntu 22.04, or newer",
        )
    missing = [name for name, version in packages.items() if version is None]
    if missing:
        todo = (
            f"./inv once as root, or: apt-get install --no-install-recommends {' '.join(missing)}"
        )
        return DoctorFinding(WHERE, "packages", "problem", f"missing: {', '.join(missing)}", todo)
    return DoctorFinding(WHERE, "packages", "ok", f"all {len(packages)} packages are installed")


def python_finding(version: tuple[int, int, int]) -> DoctorFinding:
    shown = ".".join(map(str, version))
    if version[:2] < OLDEST_PYTHON:
        todo = "install Python 3.10 or newer, remove .venv, POLYDEV_PYTHON=python3.x ./inv"
        return DoctorFinding(WHERE, "Python", "problem", f"{shown} is too old", todo)
    return DoctorFinding(WHERE, "Python", "ok", shown)


def rights_finding(*, is_root: bool) -> DoctorFinding:
    if is_root:
        return DoctorFinding(WHERE, "rights", "ok", "root")
    return DoctorFinding(
        WHERE,
        "rights",
        "warning",
        "not root: images cannot be built and labs cannot be started",
        "use sudo ./inv …; deployments to hosts work without",
    )


def kvm_finding(facts: MachineFacts) -> DoctorFinding:
    if facts.accelerator == "kvm":
        return DoctorFinding(WHERE, "KVM", "ok", "a VM boots under it")
    if not facts.kvm_device:
        found = f"/dev/kvm is missing or not accessible: VMs here run without it; {TCG_TEXT}"
        return DoctorFinding(WHERE, "KVM", "warning", found, KVM_TODO)
    if facts.accelerator is None:
        return DoctorFinding(
            WHERE,
            "KVM",
            "warning",
            "/dev/kvm exists; not tried yet: there is no image to boot",
            "run ./inv golden.build, then ./inv doctor again",
        )
    found = f"/dev/kvm exists, but no VM boots under it; {TCG_TEXT}"
    return DoctorFinding(WHERE, "KVM", "warning", found, KVM_TODO)


def leftovers_findings(orphans: Sequence[Orphan], scratch: Sequence[Path]) -> list[DoctorFinding]:
    """Findings about leftovers of killed work on this machine; none where there are none."""
    if not orphans and not scratch:
        return []
    left = [str(orphan) for orphan in orphans] + [f"folder {folder}" for folder in scratch]
    ends = [f"kill -KILL {' '.join(str(orphan.pid) for orphan in orphans)}"] if orphans else []
    todo = ", then ".join([*ends, "./inv golden.prune"])
    found = f"left by work that was killed: {', '.join(left)}"
    return [DoctorFinding(WHERE, "leftovers", "warning", found, todo)]

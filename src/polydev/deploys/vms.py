"""The unit that a VM is, who may start it, and what it runs under."""

from __future__ import annotations

from typing import Any

from pyinfra.api.command import StringCommand
from pyinfra.context import host

from polydev.deploys.accounts import CONTROLLER_USER, VM_ROOT, VM_USER
from polydev.deploys.controller import ROOT
from polydev.deploys.data import HostData
from polydev.deploys.network import VM_UNIT
from polydev.deploys.operations import TOOL, template, told
from polydev.deploys.typed import Commands, concern, operation
from polydev.deploys.units import reread_units, unit, unit_file

ACCELERATOR_UNIT = "polydev-accelerator.service"
POLKIT_FILE = "/etc/polkit-1/rules.d/50-polydev.rules"
# What QEMU needs beside the guest's memory and the cache of translated code.
QEMU_MIB = 512


def vm_values(site: HostData) -> dict[str, Any]:
    return {
        "root": ROOT,
        "vm_root": VM_ROOT,
        "vm_user": VM_USER,
        "controller_user": CONTROLLER_USER,
        "cpu_percent": 100 * site.vm_cpus,
        "memory_max_mib": site.vm_memory_mib + site.vm_translation_cache_mib + QEMU_MIB,
    }


@operation
def rights_by_polkit(differences: list[str]) -> Commands:
    """polkit lets the controller start VMs and nothing else, and VMs' users do nothing."""
    if not differences:
        host.noop("polkit lets the controller start VMs and nothing else")
        return
    told("\n".join(differences))
    yield StringCommand(f"{TOOL} polkit mend")


@concern("VMs")
def vms(site: HostData, polkit: list[str]) -> None:
    """For the VMs to come: those that run are not touched."""
    values = vm_values(site)
    template(POLKIT_FILE, values)
    rights_by_polkit(name="polkit", differences=polkit)
    config = unit_file(VM_UNIT, values)
    reread_units(name=VM_UNIT, pattern=VM_UNIT.replace("@", "@*"), files=config.files)


@concern("Accelerator")
def accelerator(site: HostData) -> None:
    """It is asked with a program of the controller's release, so that comes first."""
    config = unit_file(ACCELERATOR_UNIT, vm_values(site))
    unit(name=ACCELERATOR_UNIT, unit=ACCELERATOR_UNIT, config=config.hash, files=config.files)

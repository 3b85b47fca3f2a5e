"""Units of VMs and of their templates, and the polkit rule that lets the controller start VMs."""

from __future__ import annotations

from typing import Any

from pyinfra.api.command import StringCommand
from pyinfra.context import host

from polydev.host_layout import CONTROLLER_HOME
from polydev.host_setup.accounts import CONTROLLER_USER, VM_ROOT, VM_USER
from polydev.host_setup.controller_wheels import vm_digest
from polydev.host_setup.host_files_and_units import (
    ACCELERATOR_UNIT,
    CONFIG_FILE,
    CONTROLLER_FOLDER,
    STORE,
    TEMPLATE_PATH,
    TEMPLATE_SOCKET,
    TOOL,
    VM_UNIT,
)
from polydev.host_setup.inventory_network_checks import GUESTS
from polydev.host_setup.inventory_values import HostData
from polydev.host_setup.pyinfra_operations import show_diff, template
from polydev.host_setup.pyinfra_types import Commands, concern, operation
from polydev.host_setup.secret_files import SECRETS
from polydev.host_setup.units import reload_units, unit, unit_file
from polydev.hosttool.units import TEMPLATE_HOLDER, TEMPLATE_MAKER
from polydev.vm.qemu_command_line import QEMU

POLKIT_FILE = "/etc/polkit-1/rules.d/50-polydev.rules"
# Memory of QEMU itself, without the guest's memory and the cache of translated code.
QEMU_MIB = 512


def vm_values(site: HostData) -> dict[str, Any]:
    return {
        "root": CONTROLLER_FOLDER,
        "vm_root": VM_ROOT,
        "vm_user": VM_USER,
        "controller_user": CONTROLLER_USER,
        "cpu_percent": 100 * site.vm_cpus,
        "memory_max_mib": site.vm_memory_mib + site.vm_translation_cache_mib + QEMU_MIB,
    }


@operation
def mend_polkit(differences: list[str]) -> Commands:
    """Remove rules of others that give the controller or the VMs' users more rights.

    pyinfra has no operation for polkit.
    """
    if not differences:
        host.noop("the controller may start VMs and nothing else")
        return
    show_diff("\n".join(differences))
    yield StringCommand(f"{TOOL} polkit mend")


@concern("VMs")
def vms(site: HostData, polkit: list[str]) -> None:
    """Deploy the unit of future VMs: running ones are not touched."""
    values = vm_values(site)
    template(POLKIT_FILE, values)
    mend_polkit(name="polkit", differences=polkit)
    config = unit_file(VM_UNIT, values)
    reload_units(name=VM_UNIT, pattern=VM_UNIT.replace("@", "@*"), files=config.files)


@concern("Accelerator")
def accelerator(site: HostData) -> None:
    """Deploy the test for KVM after the controller's release, which has its program."""
    config = unit_file(ACCELERATOR_UNIT, vm_values(site))
    unit(name=ACCELERATOR_UNIT, unit=ACCELERATOR_UNIT, config=config.hash, files=config.files)


def template_values(site: HostData) -> dict[str, Any]:
    return {
        **vm_values(site),
        "config_file": CONFIG_FILE,
        "controller_home": str(CONTROLLER_HOME),
        "guest_network": GUESTS,
        "holder_max_mib": 2 * (site.vm_memory_mib + QEMU_MIB),
        "qemu": f"/usr/bin/{QEMU}",
        "secrets": SECRETS,
        "store": STORE,
        "vm_memory_mib": site.vm_memory_mib,
    }


@concern("Templates")
def templates(site: HostData) -> None:
    """Deploy the templates' units after the controller's release, which has their programs."""
    values = template_values(site)
    maker = unit_file(TEMPLATE_MAKER, values)
    # A maker at work goes on: it checks by itself which template is wanted.
    reload_units(name=TEMPLATE_MAKER, pattern=TEMPLATE_MAKER, files=maker.files)
    socket = unit_file(TEMPLATE_SOCKET, values)
    # A release restarts it only if its code for VMs differs.
    holder = unit_file(TEMPLATE_HOLDER, values, vm_digest(site.source.resolve()))
    changes = unit_file(TEMPLATE_PATH, values)
    unit(
        name=TEMPLATE_SOCKET,
        unit=TEMPLATE_SOCKET,
        config=socket.hash,
        files=socket.files,
        stop_first=TEMPLATE_HOLDER,  # systemd restarts no socket whose service runs
    )
    unit(name=TEMPLATE_HOLDER, unit=TEMPLATE_HOLDER, config=holder.hash, files=holder.files)
    unit(
        name=TEMPLATE_PATH,
        unit=TEMPLATE_PATH,
        config=changes.hash,
        files=changes.files,
        stamped=False,  # it runs nothing
    )

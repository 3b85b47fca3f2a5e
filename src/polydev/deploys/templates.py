"""The units that make templates, from which VMs are resumed, and hand them out."""

from __future__ import annotations

from typing import Any

from polydev.deploys.accounts import CONTROLLER_HOME
from polydev.deploys.bundle import vm_digest
from polydev.deploys.controller import CONFIG
from polydev.deploys.data import HostData
from polydev.deploys.images import STORE
from polydev.deploys.ranges import GUESTS
from polydev.deploys.secret_files import SECRETS
from polydev.deploys.typed import concern
from polydev.deploys.units import reread_units, unit, unit_file
from polydev.deploys.vms import QEMU_MIB, vm_values
from polydev.hosttool.units import HOLDER, MAKER
from polydev.vm.qemu import QEMU

HOLDER_SOCKET = "polydev-templates.socket"
CHANGES_UNIT = "polydev-template.path"
# They must be active; the maker runs for a minute now and then, and may fail: VMs boot then.
TEMPLATE_UNITS = (HOLDER_SOCKET, HOLDER, CHANGES_UNIT)


def template_values(site: HostData) -> dict[str, Any]:
    return {
        **vm_values(site),
        "config_file": CONFIG,
        "controller_home": CONTROLLER_HOME,
        "guest_network": GUESTS,
        "holder_max_mib": 2 * (site.vm_memory_mib + QEMU_MIB),
        "qemu": f"/usr/bin/{QEMU}",
        "secrets": SECRETS,
        "store": STORE,
        "vm_memory_mib": site.vm_memory_mib,
    }


@concern("Templates")
def templates(site: HostData) -> None:
    """They are made and held by programs of the controller's release, so that comes first."""
    values = template_values(site)
    maker = unit_file(MAKER, values)
    # One that is at work goes on: it looks at what is wanted by itself.
    reread_units(name=MAKER, pattern=MAKER, files=maker.files)
    socket = unit_file(HOLDER_SOCKET, values)
    # Another release restarts it where its code is another one.
    holder = unit_file(HOLDER, values, vm_digest(site.source.resolve()))
    changes = unit_file(CHANGES_UNIT, values)
    unit(
        name=HOLDER_SOCKET,
        unit=HOLDER_SOCKET,
        config=socket.hash,
        files=socket.files,
        stop_first=HOLDER,  # systemd restarts no socket whose service runs
    )
    unit(name=HOLDER, unit=HOLDER, config=holder.hash, files=holder.files)
    unit(
        name=CHANGES_UNIT,
        unit=CHANGES_UNIT,
        config=changes.hash,
        files=changes.files,
        stamped=False,  # it runs nothing
    )

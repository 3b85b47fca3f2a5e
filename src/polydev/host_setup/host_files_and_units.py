"""Files and units that a deployment puts on a host, and what of them a backup holds.

Without pyinfra, so that verbs that only need to know a host start quickly.
"""

from __future__ import annotations

from typing import Any

from polydev import host_layout, image_layout
from polydev.host_setup.inventory_values import HostData
from polydev.host_setup.render import template_paths
from polydev.host_setup.secret_files import SECRETS
from polydev.hosttool.slot_network import HOST_FILE as HOST_PATH
from polydev.hosttool.units import (
    MAIN,
    SLOT,
    SOCKET,
    TEMPLATE_HOLDER,
    TEMPLATE_MAKER,
    VM,
    WATCH,
)

TOOL = str(host_layout.HOST_TOOL)
HOST_FILE = str(HOST_PATH)
STORE = str(image_layout.STORE)
CONTROLLER_FOLDER = str(host_layout.CONTROLLER_ROOT)
CONFIG_FILE = str(host_layout.CONTROLLER_CONFIG / "config.yaml")
SYSCTL_FILE = "/etc/sysctl.d/60-polydev.conf"
SSHD_FILE = "/etc/ssh/sshd_config.d/00-polydev.conf"
# Its name in earlier releases; a cloud image's 50-cloud-init.conf came before it.
OLD_SSHD_FILE = "/etc/ssh/sshd_config.d/50-polydev.conf"
BRIDGE = "br-vm"
NETDEV_FILE = f"/etc/systemd/network/30-{BRIDGE}.netdev"
NETWORK_FILE = f"/etc/systemd/network/30-{BRIDGE}.network"
FIREWALL_FILE = "/etc/polydev/firewall.nft"

SSH_UNIT = "ssh.service"
JOURNAL_UNIT = "systemd-journald.service"
NETWORK_UNIT = "polydev-network.service"
FIREWALL_UNIT = "polydev-firewall.service"
DNS_UNIT = "polydev-dns.service"
SLOT_UNIT = f"{SLOT}.service"
VM_UNIT = f"{VM}.service"
SLOTS_TARGET = "polydev-slots.target"
ACCELERATOR_UNIT = "polydev-accelerator.service"
TEMPLATE_SOCKET = "polydev-templates.socket"
TEMPLATE_PATH = "polydev-template.path"

# Files that decide whether SSH reaches the host, and the record of those that were confirmed.
ACCESS_FILES = (
    SSHD_FILE,
    NETDEV_FILE,
    NETWORK_FILE,
    f"/etc/systemd/system/{NETWORK_UNIT}",
    f"/etc/systemd/system/{FIREWALL_UNIT}",
    f"/etc/systemd/system/{SSH_UNIT}.d/polydev.conf",
    FIREWALL_FILE,
)
ACCESS_STAMP = str(host_layout.HOST_HOME / "reach.json")


def slot_units(site: HostData) -> list[str]:
    return [SLOT_UNIT.replace("@", f"@{number}") for number in site.slot_numbers]


def unit_order(site: HostData) -> list[str]:
    """Return every unit that must be active, in the order of their start.

    The maker of templates is not among them: it runs now and then, and may fail.
    """
    network = [NETWORK_UNIT, FIREWALL_UNIT, *slot_units(site), SLOTS_TARGET, DNS_UNIT, WATCH]
    vms = [ACCELERATOR_UNIT, TEMPLATE_SOCKET, TEMPLATE_HOLDER, TEMPLATE_PATH]
    return [JOURNAL_UNIT, SSH_UNIT, *network, SOCKET, MAIN, *vms]


def backup_scope(site: HostData) -> dict[str, Any]:
    """Return what a backup of this host holds: all that a deployment may change, but packages."""
    paths = {*template_paths(), HOST_FILE, ACCESS_STAMP, TOOL, CONFIG_FILE}
    paths |= {SECRETS, OLD_SSHD_FILE, SYSCTL_FILE}
    return {
        "paths": sorted(paths),
        "reach": [*ACCESS_FILES, ACCESS_STAMP, OLD_SSHD_FILE],
        # The maker first: a restore stops it, and then what would start it again.
        "units": [TEMPLATE_MAKER, *unit_order(site)],
        "controller": {"root": CONTROLLER_FOLDER, "database": str(host_layout.CONTROLLER_DATABASE)},
        "store": STORE,
    }

"""Paths on a host, and the addresses, ports and names that several programs use there.

This module imports the standard library only, so that every program can have it: the controller,
the operator's side, and the host tool, which carries it in its file. The agent and the doctor's
probe go elsewhere alone and have copies, which `tests/unit/test_written_twice.py` compares.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

# The id of a deployment and of its release, as in 20250131_120000-1a2b3c4.
DEPLOYMENT_ID = re.compile(r"\d{8}_\d{6}-[0-9a-f]{4,40}(-dirty)?")

HOST_HOME = Path("/opt/polydev-ai")
HOST_TOOL = HOST_HOME / "bin" / "polydev-host"
BACKUPS = HOST_HOME / "backups"
DEPLOYMENTS = HOST_HOME / "deployments"
CONTROLLER_ROOT = Path("/opt/master-controller")
CONTROLLER_CONFIG = Path("/etc/master-controller")
CONTROLLER_HOME = Path("/var/lib/master-controller")
CONTROLLER_DATABASE = CONTROLLER_HOME / "controller.sqlite3"
CONTROLLER_PORT = 4000

# The VM contract: the same address, gateway and ports in every guest.
GUEST_ADDRESS = "172.16.0.2"
GUEST_GATEWAY = "172.16.0.1"
# A clone remembers it from where its template booted, so it is the same wherever a guest runs.
GATEWAY_MAC = "52:54:00:16:00:01"
AGENT_PORT, VNC_PORT, NOVNC_PORT = 8080, 5901, 6080
GUEST_PORTS = (AGENT_PORT, VNC_PORT, NOVNC_PORT)


def slot_address(network: IPv4Network, slot: int) -> IPv4Address:
    """Return the address of a slot's VM in the network of the host's VMs."""
    return network.network_address + slot

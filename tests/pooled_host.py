"""A deployed host with templates, and with a pool of clones of them."""

from __future__ import annotations

from dataclasses import replace

from inventory.group_data import lab
from tests.hosts import DeployedHost

MAKER = "polydev-template.service"
HOLDER = "polydev-templates.service"
STORE = "/var/lib/firecracker/snapshots/base"
FOLDER = f"{STORE}/templates"
POOLED = 2
PAUSE_AFTER_SECONDS = 30
# Two looks are enough for an alert; how long they are apart on a host is no matter here.
ALERTS = {"samples": {"every_seconds": 2}, "alert": {"for_seconds": 1}}


def host_with_pool(host: DeployedHost, size: int) -> DeployedHost:
    """Return the host's declaration with a pool of so many VMs."""
    controller = {
        **lab.controller,
        **ALERTS,
        "templates": True,
        "pool": {"size": size},
        "vm": {"pause_after_seconds": PAUSE_AFTER_SECONDS},
    }
    return replace(host, data={"controller": controller})

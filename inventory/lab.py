"""Inventory of the lab that ./inv lab.up starts: `dev`, or the one that POLYDEV_LAB names."""

from __future__ import annotations

import os

from polydev.lab import find
from polydev.settings import Settings

_lab = find(os.environ.get("POLYDEV_LAB", "dev"), Settings.from_environment())

browser_hosts = [
    (
        f"lab-{_lab.name}",
        {
            "ssh_hostname": _lab.address,
            "ssh_port": _lab.ssh_port,
            "ssh_user": _lab.user,
            "ssh_key": str(_lab.key),
            "ssh_known_hosts_file": str(_lab.known_hosts),
        },
    )
    for _lab in ([_lab] if _lab else [])
]

"""The hosts of an inventory, checked, for the programs that deploy to them.

Without pyinfra, whose import takes most of the time of a verb that only asks a host something.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polydev.host_setup.host_files_and_units import backup_scope
from polydev.host_setup.inventory_file import read_inventory
from polydev.host_setup.inventory_values import HostData, check_host_data
from polydev.host_setup.listen_address import ListenAddress
from polydev.host_setup.ssh_settings import PREFIX


def described_hosts(inventory: Path) -> list[dict[str, Any]]:
    """Return each host's connection, backup scope, dead-man time and URL of its controller.

    Raises ConfigError with what is wrong in the inventory.
    """
    return [_described(name, values) for name, values in read_inventory(inventory).items()]


def _described(name: str, values: dict[str, Any]) -> dict[str, Any]:
    site = check_host_data(values, name)
    connection = {
        key: str(value)
        for key, value in values.items()
        if key.startswith(PREFIX) and value is not None
    }
    return {
        "name": name,
        "connection": connection,
        "scope": backup_scope(site),
        "deadmanSeconds": site.deadman_seconds,
        "controller": controller_url(site),
    }


def controller_url(site: HostData) -> str:
    """Return the URL at which the host itself reaches its controller."""
    listen = site.listen
    scheme = "https" if site.speaks_tls else "http"
    return f"{scheme}://{ListenAddress(listen.from_host, listen.port)}"

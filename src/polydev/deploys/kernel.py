"""Kernel settings: kept in a file for the next start, and true now."""

from __future__ import annotations

from polydev.deploys.operations import kernel_value, text_file
from polydev.deploys.typed import concern

PATH = "/etc/sysctl.d/60-polydev.conf"
VALUES = {
    "net.ipv4.ip_forward": "1",  # VMs reach the internet through the host
    "net.core.somaxconn": "4096",  # the controller's backlog while releases change
}


def sysctl_text(values: dict[str, str]) -> str:
    return "".join(f"{key} = {value}\n" for key, value in values.items())


@concern("Kernel settings")
def kernel() -> None:
    text_file(PATH, sysctl_text(VALUES))
    for key, value in VALUES.items():
        kernel_value(name=f"sysctl {key}", key=key, value=value)

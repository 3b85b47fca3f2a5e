"""Firecracker and its jailer, copied from the operator's files; QEMU is among the packages."""

from __future__ import annotations

import hashlib
from pathlib import Path

from polydev.errors import ConfigError
from polydev.host_setup.inventory_values import HostData
from polydev.host_setup.pyinfra_operations import opaque_file
from polydev.host_setup.pyinfra_types import concern


def checked_bytes(file: Path, sha256: str) -> bytes:
    """Return a program's bytes. Raises ConfigError unless they have the inventory's checksum."""
    hint = "set path and sha256 of a release that you trust in the inventory"
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"inventory: firecracker: {file}: {error.strerror}", hint) from error
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise ConfigError(f"inventory: firecracker: {file} has sha256 {found}, not {sha256}", hint)
    return data


@concern("Hypervisor")
def hypervisor(site: HostData) -> None:
    if site.firecracker is None:
        return
    given = site.firecracker
    for name, file, sha256 in (
        ("firecracker", given.file, given.sha256),
        ("jailer", given.jailer_file, given.jailer_sha256),
    ):
        data = checked_bytes(file, sha256)
        path = f"/usr/local/bin/{name}"
        opaque_file(path, data)

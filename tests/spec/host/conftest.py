"""Shared parts of specs of a deployed host: the host's own values of what it should be.

    pytest --hosts=ssh://deploy@ADDRESS --sudo tests/spec/host

holds for any deployed host: it only reads, and expects what /etc/polydev/host.json says.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from ipaddress import IPv4Interface
from typing import Any

import pytest
from testinfra.host import Host

HOST_FILE = "/etc/polydev/host.json"


@dataclass(frozen=True)
class Site:
    """The declared values of the host."""

    bridge: str
    network: IPv4Interface
    slots: tuple[int, ...]
    resolvers: tuple[str, ...]
    public_resolvers: bool
    port: int
    units: tuple[str, ...]

    @property
    def gateway(self) -> str:
        return str(self.network.ip)

    def vm_user(self, slot: int) -> str:
        return f"polydev-vm-{slot}"

    def address(self, slot: int) -> str:
        return str(self.network.network.network_address + slot)

    def started(self) -> list[str]:
        """The units that run something, so that they write down what they were started with."""
        return [unit for unit in self.units if not unit.endswith((".target", ".path"))]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("hosts"):
        return
    for item in items:
        if item.path.parent.samefile(__file__.rpartition("/")[0]):
            item.add_marker(pytest.mark.skip("needs --hosts=ssh://… of a deployed host"))


@pytest.fixture(scope="module")
def site(host: Host) -> Site:
    known: dict[str, Any] = json.loads(host.check_output(f"cat {HOST_FILE}"))
    return Site(
        bridge=known["bridge"]["name"],
        network=IPv4Interface(known["bridge"]["address"]),
        slots=tuple(known["slots"]),
        resolvers=tuple(known["resolvers"]),
        public_resolvers=not known["translatesNames"],
        port=known["controllerPort"],
        units=tuple(known["units"]),
    )

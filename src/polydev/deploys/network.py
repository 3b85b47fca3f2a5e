"""Bridge, firewall, slots and names: everything between VMs, the host and the internet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polydev.deploys.data import HostData
from polydev.deploys.operations import live_firewall, template
from polydev.deploys.typed import concern
from polydev.deploys.units import only_units, unit, unit_file

BRIDGE = "br-vm"
NETWORK_UNIT = "polydev-network.service"
FIREWALL_UNIT = "polydev-firewall.service"
DNS_UNIT = "polydev-dns.service"
SLOT_UNIT = "microvm-slot@.service"
VM_UNIT = "microvm@.service"
SLOTS_TARGET = "polydev-slots.target"
DOMAIN = "vm.internal"
TABLE = "polydev"

# Not the internet: this host, private networks, cloud metadata, documentation apart.
CLOSED = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "224.0.0.0/3",
)


def network_values(site: HostData) -> dict[str, Any]:
    numbers = site.slot_numbers
    return {
        "bridge": BRIDGE,
        "bridge_address": site.bridge_address,
        "network": site.bridge_address.network,
        "gateway": site.gateway,
        "first_vm": site.slot_address(numbers[0]),
        "last_vm": site.slot_address(numbers[-1]),
        "slots": {number: site.slot_address(number) for number in numbers},
        "slot_units": slot_units(site),
        "closed": CLOSED,
        "reachable": site.reachable,
        "private_resolvers": [each for each in site.resolvers if not each.is_global],
        "upstream_resolvers": site.upstream_resolvers,
        "domain": DOMAIN,
        "table": TABLE,
    }


def slot_units(site: HostData) -> list[str]:
    return [f"microvm-slot@{number}.service" for number in site.slot_numbers]


@concern("Bridge")
def bridge(site: HostData) -> None:
    values = network_values(site)
    netdev = template("/etc/systemd/network/30-br-vm.netdev", values)
    network = template("/etc/systemd/network/30-br-vm.network", values)
    config = unit_file(NETWORK_UNIT, values, netdev, network)
    unit(name=NETWORK_UNIT, unit=NETWORK_UNIT, config=config.hash, files=config.files)


@concern("Firewall")
def firewall(site: HostData) -> None:
    path = "/etc/polydev/firewall.nft"
    values = network_values(site)
    rules = template(path, values)
    config = unit_file(FIREWALL_UNIT, values, rules)
    unit(name=FIREWALL_UNIT, unit=FIREWALL_UNIT, config=config.hash, files=config.files)
    live_firewall(name=f"table {TABLE}", family="inet", table=TABLE, text=rules.text, path=path)


@concern("Slots")
def slots(site: HostData) -> None:
    values = network_values(site)
    target = unit_file(SLOTS_TARGET, values)
    config = unit_file(SLOT_UNIT, values, slot_code(), *slot_words(site))
    wanted = slot_units(site)
    only_units(name="slots beyond the last", template=SLOT_UNIT, wanted=wanted, needed_by=VM_UNIT)
    for number, name in zip(site.slot_numbers, wanted, strict=True):
        # A slot that is made anew is another network: a VM keeps the one that it has.
        user = VM_UNIT.replace("@", f"@{number}")
        unit(name=name, unit=name, config=config.hash, files=config.files, needed_by=user)
    unit(
        name=SLOTS_TARGET,
        unit=SLOTS_TARGET,
        config=target.hash,
        files=target.files,
        stamped=False,
    )


def slot_words(site: HostData) -> list[str]:
    """What of the inventory a slot is made of, which it reads as it starts."""
    return [str(site.bridge_address), *([str(site.resolvers[0])] if site.translates_names else [])]


def slot_code() -> str:
    """The program that makes a slot: what a slot is, is what this says.

    Not the whole host tool: its other changes need not cost any VM its network.
    """
    return (Path(__file__).parents[1] / "hosttool" / "slots.py").read_text()


@concern("Names")
def names(site: HostData) -> None:
    values = network_values(site)
    settings = template("/etc/polydev/dns.conf", values)
    config = unit_file(DNS_UNIT, values, settings)
    unit(name=DNS_UNIT, unit=DNS_UNIT, config=config.hash, files=config.files)

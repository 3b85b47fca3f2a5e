"""Bridge, firewall, slots and DNS: the network between VMs, the host and the internet."""

from __future__ import annotations

from ipaddress import collapse_addresses
from pathlib import Path
from types import ModuleType
from typing import Any

from pyinfra.context import host

from polydev.host_layout import GATEWAY_MAC, GUEST_ADDRESS, GUEST_GATEWAY, GUEST_PORTS
from polydev.host_setup.facts import HostNetworks
from polydev.host_setup.host_files_and_units import (
    BRIDGE,
    DNS_UNIT,
    FIREWALL_FILE,
    FIREWALL_UNIT,
    NETDEV_FILE,
    NETWORK_FILE,
    NETWORK_UNIT,
    SLOT_UNIT,
    SLOTS_TARGET,
    TOOL,
    VM_UNIT,
    slot_units,
)
from polydev.host_setup.host_report import NetworkDifferences
from polydev.host_setup.inventory_network_checks import (
    CLOSED,
    HostNetwork,
    conflicts,
    open_to_the_internet,
)
from polydev.host_setup.inventory_values import HostData, refuse
from polydev.host_setup.pyinfra_operations import load_firewall, template
from polydev.host_setup.pyinfra_types import concern, warn
from polydev.host_setup.render import render_unit
from polydev.host_setup.units import stop_other_units, unit, unit_file
from polydev.hosttool import network_facts, network_state, network_watch
from polydev.hosttool import slot_network as host_slots
from polydev.hosttool.bridge_facts import WORST_METRIC
from polydev.hosttool.network_facts import BRIDGE_PART
from polydev.hosttool.units import WATCH

DOMAIN = "vm.internal"
TABLE = "polydev"


def network_values(site: HostData) -> dict[str, Any]:
    numbers = site.slot_numbers
    return {
        "bridge": BRIDGE,
        "bridge_address": site.bridge_address,
        "network": site.bridge_address.network,
        "worst_metric": WORST_METRIC,
        "gateway": site.gateway,
        "first_vm": site.slot_address(numbers[0]),
        "last_vm": site.slot_address(numbers[-1]),
        "slots": {number: site.slot_address(number) for number in numbers},
        "slot_units": slot_units(site),
        "closed": CLOSED,
        "reachable": list(collapse_addresses(site.reachable)),
        "private_resolvers": [each for each in site.resolvers if not each.is_global],
        "upstream_resolvers": site.upstream_resolvers,
        "domain": DOMAIN,
        "table": TABLE,
    }


def require_free_networks(site: HostData) -> None:
    """Raise ConfigError if a network or address of the host overlaps those of its VMs."""
    networks: list[HostNetwork] = host.get_fact(HostNetworks)
    if found := list(conflicts(site, networks, BRIDGE)):
        refuse(str(host.name), found)


def warn_of_open_api(site: HostData) -> None:
    """Warn if tokens would cross the internet in plain text."""
    if site.speaks_tls:
        return
    networks: list[HostNetwork] = host.get_fact(HostNetworks)
    if found := open_to_the_internet(site, networks):
        warn(
            f"{host.name}: controller_listen: {site.controller_listen} is open to the internet at "
            f"{', '.join(found)}, and tokens go there in plain text; listen at 127.0.0.1 with a "
            'proxy that speaks TLS in front (docs/controller.md, "Behind a proxy"), or give it a '
            'certificate ("TLS")'
        )


@concern("Bridge")
def bridge(site: HostData, live: NetworkDifferences) -> None:
    values = network_values(site)
    netdev = template(NETDEV_FILE, values)
    network = template(NETWORK_FILE, values)
    config = unit_file(NETWORK_UNIT, values, netdev, network)
    unit(
        name=NETWORK_UNIT,
        unit=NETWORK_UNIT,
        config=config.hash,
        files=config.files,
        differences=live.get(BRIDGE_PART, []),
    )


@concern("Firewall")
def firewall(site: HostData) -> None:
    values = network_values(site)
    rules = template(FIREWALL_FILE, values)
    config = unit_file(FIREWALL_UNIT, values, rules)
    unit(name=FIREWALL_UNIT, unit=FIREWALL_UNIT, config=config.hash, files=config.files)
    load_firewall(
        name=f"table {TABLE}", family="inet", table=TABLE, text=rules.text, path=FIREWALL_FILE
    )


@concern("Slots")
def slots(site: HostData, live: NetworkDifferences) -> None:
    values = network_values(site)
    target = unit_file(SLOTS_TARGET, values)
    config = unit_file(SLOT_UNIT, values, *slot_texts(site))
    wanted = slot_units(site)
    stop_other_units(
        name="slots beyond the last", template=SLOT_UNIT, wanted=wanted, needed_by=VM_UNIT
    )
    for number, name in zip(site.slot_numbers, wanted, strict=True):
        # A restart would give the slot another network; a VM that runs keeps the one that it has.
        user = VM_UNIT.replace("@", f"@{number}")
        unit(
            name=name,
            unit=name,
            config=config.hash,
            files=config.files,
            needed_by=user,
            differences=live.get(f"slot-{number}", []),
            mend=f"{TOOL} slot mend {number}",
        )
    unit(
        name=SLOTS_TARGET,
        unit=SLOTS_TARGET,
        config=target.hash,
        files=target.files,
        stamped=False,
    )


@concern("Watch of the network")
def network_watch_unit(site: HostData, differences: list[str]) -> None:
    """Deploy the watch after all that it watches, so that it starts with the present host tool."""
    code = [
        source_of(module) for module in (network_facts, network_state, network_watch, host_slots)
    ]
    code += guest_network()
    config = unit_file(WATCH, network_values(site), *code)
    unit(
        name=WATCH,
        unit=WATCH,
        config=config.hash,
        files=config.files,
        differences=differences,
    )


def slot_config(site: HostData) -> str:
    """Return the hash of a slot's inputs."""
    return render_unit(SLOT_UNIT, network_values(site), slot_texts(site))[1]


def slot_texts(site: HostData) -> list[str]:
    """Return a slot's inputs: its program, and the values that it reads.

    Not the whole host tool: its other changes must not restart the slots.
    """
    resolver = [str(site.resolvers[0])] if site.translates_names else []
    return [source_of(host_slots), *guest_network(), str(site.bridge_address), *resolver]


def guest_network() -> list[str]:
    """Return the values of the guests' network from `polydev.host_layout`."""
    return [GUEST_ADDRESS, GUEST_GATEWAY, GATEWAY_MAC, *map(str, GUEST_PORTS)]


def source_of(module: ModuleType) -> str:
    return Path(str(module.__file__)).read_text()


@concern("Names")
def names(site: HostData) -> None:
    values = network_values(site)
    settings = template("/etc/polydev/dns.conf", values)
    config = unit_file(DNS_UNIT, values, settings)
    unit(name=DNS_UNIT, unit=DNS_UNIT, config=config.hash, files=config.files)

"""Set the VMs' network back to what is declared, in place: the bridge, and a slot under its VM."""

from __future__ import annotations

from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

from polydev.hosttool import bridge_facts, ip_output, slot_facts, slot_network
from polydev.hosttool.errors import HostError
from polydev.hosttool.network_facts import Json
from polydev.hosttool.network_state import (
    check_slot,
    host_kernel_state,
    is_kept,
    numbers_in,
    run_with_input,
    slot_kernel_state,
)
from polydev.hosttool.slot_network import MTU

LINKS = Path("/sys/class/net")


def mend_bridge() -> dict[str, object]:
    """Configure the bridge as declared; networkd sets its addresses and routes.

    Other addresses are deleted here, since networkd keeps link-local ones of IPv6.
    """
    host = slot_network.read_host()
    bridge = host["bridge"]
    if not isinstance(bridge, dict):
        raise HostError("no-host", f"{slot_network.HOST_FILE} names no bridge", "deploy this host")
    name = str(bridge["name"])
    here = host_kernel_state(name)
    there = numbers_in(slot_network.existing_slots()["slots"])
    live = bridge_facts.live_bridge(host, here, there)
    if name not in live:
        _make_bridge(name)
    # First the stations: the kernel drops them if the bridge's address changes as ports leave.
    stations = map(bridge_facts.station, bridge_facts.static_stations(here))
    run_with_input(
        ["bridge", "-batch", "-"], "".join(f"fdb delete {each} master\n" for each in stations)
    )
    commands = [f"neighbour delete {each}" for each in live["neighbours"]["permanent"]]
    # Only what differs: a kernel may lack an option, and then refuses its default too.
    commands += [
        f"link set {name} type bridge {option} {value}"
        for option, value in bridge_facts.BRIDGE_OPTIONS.items()
        if live.get(name, {}).get(option, (value,)) != (value,)
    ]
    commands += [f"link set {port} nomaster" for port in bridge_facts.foreign_ports(live)]
    addresses = live.get(name, {}).get("addresses", ())
    own = IPv4Interface(bridge["address"])
    commands += [f"address delete {each} dev {name}" for each in addresses if each != str(own)]
    declared = bridge_facts.routes_to_vms(name, own)
    routes = live["routes"][f"to {own.network}"]
    commands += [f"route delete {route}" for route in routes if route not in declared]
    rules = bridge_facts.rules_before_main(host, here)
    commands += [f"rule delete {ip_output.rule_words(rule)}" for rule in rules]
    if bridge_facts.BY_MAIN not in live["routes"]["policy"]:
        commands.append("rule add priority 32766 lookup main")
    if live.get(name, {}).get("mtu", (MTU,)) != (MTU,):
        commands.append(f"link set {name} mtu {MTU}")
    commands += [f"link set {name} addrgenmode none", f"link set {name} up"]
    run_with_input(["ip", "-batch", "-"], "".join(f"{each}\n" for each in commands))
    _delete_rules6([], bridge_facts.rules6_of_bridge(host, here))
    settings = [f"{key}={value}" for key, value in bridge_facts.bridge_settings(name).items()]
    run_with_input(["sysctl", "-q", "-w", *settings], "")
    return {"mended": name}


def _delete_rules6(where: list[str], rules: list[Json]) -> None:
    commands = [f"rule delete {ip_output.rule_words(each)}\n" for each in rules]
    if commands:
        run_with_input(["ip", "-6", *where, "-batch", "-"], "".join(commands))


def _make_bridge(name: str) -> None:
    try:
        run_with_input(["ip", "link", "add", name, "type", "bridge"], "")
    except HostError:
        # networkd may have created it meanwhile.
        if not (LINKS / name).exists():
            raise


def mend_slot(number: int) -> dict[str, object]:
    """Configure a slot as declared, under its running VM. Raises HostError `slot-broken`."""
    host: dict[str, Any] = slot_network.read_host()
    slot = slot_network.slot_of(number, host)
    only_port = is_kept(number, host)
    slot_network.mend(slot, only_port=only_port)
    inside = None if only_port else slot_kernel_state(slot)
    if inside is not None:
        live = slot_facts.live_slot(inside)
        down = [f"link set {link} down\n" for link in slot_facts.foreign_links(live)]
        run_with_input(["ip", "-n", slot.namespace, "-batch", "-"], "".join(down))
        _delete_rules6(["-n", slot.namespace], slot_facts.rules6_of_slot(inside))
    left = check_slot(slot, host, host_kernel_state(slot.bridge))
    if left:
        raise HostError(
            "slot-broken",
            f"slot {number} cannot be corrected while its VM runs: {left[0].text}",
            "end its session, which `./inv sessions` lists, then deploy again",
        )
    return {"mended": number}

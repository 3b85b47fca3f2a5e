"""The network of a slot and its port in the bridge: as declared, and as the kernel has it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Interface

from polydev.host_layout import GATEWAY_MAC, GUEST_GATEWAY
from polydev.hosttool.ip_output import (
    addresses_of,
    is_local_route,
    link_state,
    option_word,
    permanent_neighbours,
    route_line,
    rule_line,
    settings_lines,
)
from polydev.hosttool.network_facts import SETTINGS, Facts, Json, KernelState, Lines
from polydev.hosttool.slot_network import MTU, PORT_FLAGS, TAP, UPLINK, Slot, settings_of

# The rules for IPv6 that every kernel has. VMs have no IPv6 addresses, so there are no others.
POLICY6 = ("0: local", "32766: main")


def declared_port(slot: Slot) -> Facts:
    """Return the declared port of the slot in the bridge."""
    flags = {name: (value,) for name, value in PORT_FLAGS.items()}
    return {slot.port: {"bridge": (slot.bridge,), "state": ("up",), "mtu": (MTU,), **flags}}


def declared_slot(slot: Slot, rules: Lines) -> Facts:
    """Return all of a declared slot; `rules` are its rules as nft lists them."""
    network = slot.network.network
    return {
        **declared_port(slot),
        "lo": {"state": ("up",)},
        TAP: {
            "state": ("up",),
            "kind": ("tap",),
            "user": (slot.user,),
            "address": (GATEWAY_MAC,),
            "mtu": (MTU,),
            "addresses": (f"{GUEST_GATEWAY}/30",),
        },
        UPLINK: {
            "state": ("up",),
            "kind": ("veth",),
            "address": (slot.hardware_address,),
            "mtu": (MTU,),
            "addresses": (f"{slot.address}/{slot.prefix}",),
        },
        "routes": {
            "of the slot": tuple(
                sorted(
                    [
                        f"default via {slot.gateway} dev {UPLINK}",
                        f"{IPv4Interface(f'{GUEST_GATEWAY}/30').network} dev {TAP} "
                        f"src {GUEST_GATEWAY}",
                        f"{network} dev {UPLINK} src {slot.address}",
                    ]
                )
            ),
            "policy": ("0: local", "32766: main", "32767: default"),
            "IPv6 policy": (),
        },
        "neighbours": {"permanent": ()},
        SETTINGS: {key: (value,) for key, value in settings_of(slot).items()},
        "nftables": {"rules": rules},
    }


def live_port(slot: Slot, links: Sequence[Json]) -> Facts:
    facts = {}
    # With the bridge down no port forwards, and the bridge itself is a difference.
    is_bridge_up = any(each["ifname"] == slot.bridge and "UP" in each["flags"] for each in links)
    for link in links:
        if link["ifname"] == slot.port:
            flags = link.get("linkinfo", {}).get("info_slave_data", {})
            facts[slot.port] = {
                "bridge": (str(link.get("master", "none")),),
                "state": link_state(link, flags.get("state") if is_bridge_up else None),
                "mtu": (str(link["mtu"]),),
                # A kernel that does not know a flag cannot have it set.
                **{
                    name: (option_word(flags.get(name, wanted == "on")),)
                    for name, wanted in PORT_FLAGS.items()
                },
            }
    return facts


def live_slot(live: KernelState) -> Facts:
    """Return the inside of a slot; interfaces of others count only if they are up."""
    facts: dict[str, Mapping[str, Lines]] = {
        "routes": {
            "of the slot": tuple(
                sorted(route_line(each) for each in live.routes if not is_local_route(each))
            ),
            "policy": tuple(rule_line(each) for each in live.policy),
            "IPv6 policy": tuple(rule_line(each) for each in rules6_of_slot(live)),
        },
        "neighbours": {"permanent": permanent_neighbours(live, (TAP, UPLINK))},
        SETTINGS: settings_lines(live.settings),
        "nftables": {"rules": live.rules},
    }
    for link in live.links:
        name, info = link["ifname"], link.get("linkinfo", {})
        data = info.get("info_data", {})
        if name in ("lo", TAP, UPLINK):
            facts[name] = {
                "state": link_state(link),
                "kind": (str(data.get("type") or info.get("info_kind", "none")),),
                "user": (str(data.get("user", "everybody")),),
                "address": (str(link.get("address")),),
                "mtu": (str(link["mtu"]),),
                "addresses": addresses_of(link),
            }
        elif "UP" in link["flags"]:
            facts[f"interface {name}"] = {}
    return facts


def foreign_links(facts: Facts) -> list[str]:
    found = [each for each in facts if each.startswith("interface ")]
    return [each.removeprefix("interface ") for each in found]


def rules6_of_slot(live: KernelState) -> list[Json]:
    """Return IPv6 routing policy rules, except the kernel's own."""
    return [each for each in live.policy6 if rule_line(each) not in POLICY6]

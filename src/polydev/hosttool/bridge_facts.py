"""The bridge of VMs and the host's own settings: as declared, and as the kernel has them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Interface, IPv4Network

from polydev.hosttool.ip_output import (
    addresses_of,
    link_state,
    option_word,
    permanent_neighbours,
    routes_into,
    rule_line,
    settings_lines,
)
from polydev.hosttool.network_facts import FORWARDING, SETTINGS, Facts, Json, KernelState, Lines
from polydev.hosttool.slot_network import MTU

# Of the bridge itself, by the names that `ip` gives them.
BRIDGE_OPTIONS = {"stp_state": "0", "vlan_filtering": "0", "group_fwd_mask": "0"}
# The worst metric: every other route to the VMs' network is better.
WORST_METRIC = 4294967295
# The routing policy rule that asks the main table, for what earlier rules do not decide.
BY_MAIN = "main"


def declared_bridge(host: Json) -> Facts:
    """Return the bridge of host.json, and the only routes to the VMs' network."""
    bridge = host["bridge"]
    name, address = str(bridge["name"]), IPv4Interface(bridge["address"])
    return {
        name: {
            "state": ("up",),
            "kind": ("bridge",),
            "addresses": (str(address),),
            "mtu": (MTU,),
            "static stations": (),
            **{option: (value,) for option, value in BRIDGE_OPTIONS.items()},
        },
        "routes": {
            f"to {address.network}": routes_to_vms(name, address),
            "policy": (BY_MAIN,),
            "IPv6 policy": (),
        },
        "neighbours": {"permanent": ()},
        SETTINGS: {key: (value,) for key, value in bridge_settings(name).items()},
    }


def routes_to_vms(bridge: str, address: IPv4Interface) -> Lines:
    """Return routes by the bridge; without it unreachable, not by the default route."""
    network = address.network
    return tuple(
        sorted(
            [
                f"{network} dev {bridge} src {address.ip}",
                f"unreachable {network} metric {WORST_METRIC}",
            ]
        )
    )


def bridge_settings(bridge: str) -> dict[str, str]:
    """Return kernel settings for the bridge; a 1 in `all` would apply to every interface."""
    return {
        "net.ipv4.conf.all.proxy_arp": "0",
        "net.ipv4.conf.all.proxy_arp_pvlan": "0",
        "net.ipv4.conf.all.route_localnet": "0",
        f"net.ipv4.conf.{bridge}.forwarding": "1",
        f"net.ipv4.conf.{bridge}.proxy_arp": "0",
        f"net.ipv4.conf.{bridge}.proxy_arp_pvlan": "0",
        f"net.ipv4.conf.{bridge}.route_localnet": "0",
    }


def live_bridge(host: Json, live: KernelState, slots_there: Iterable[int]) -> Facts:
    """Return the bridge's facts; `slots_there` are all slots that have a namespace."""
    name, network = str(host["bridge"]["name"]), IPv4Interface(host["bridge"]["address"]).network
    ports = {f"vm-{number}" for number in (*host["slots"], *slots_there)}
    settings = {key: live.settings[key] for key in bridge_settings(name) if key in live.settings}
    facts: dict[str, Mapping[str, Lines]] = {
        "routes": {
            f"to {network}": routes_into(network, live.routes),
            "policy": (
                *(rule_line(each) for each in rules_before_main(host, live)),
                *([BY_MAIN] if any(map(_asks_main, live.policy)) else []),
            ),
            "IPv6 policy": tuple(rule_line(each) for each in rules6_of_bridge(host, live)),
        },
        "neighbours": {"permanent": permanent_neighbours(live, {name, *ports})},
        SETTINGS: settings_lines(settings),
    }
    for link in live.links:
        if link["ifname"] == name:
            options = link.get("linkinfo", {}).get("info_data", {})
            facts[name] = {
                "state": link_state(link),
                "kind": (str(link.get("linkinfo", {}).get("info_kind", "none")),),
                "addresses": addresses_of(link),
                "mtu": (_mtu_of_bridge(link, live.links),),
                "static stations": tuple(map(station, static_stations(live))),
                **{each: (option_word(options.get(each)),) for each in BRIDGE_OPTIONS},
            }
        elif link.get("master") == name and link["ifname"] not in ports:
            facts[f"port {link['ifname']}"] = {}
    return facts


def _mtu_of_bridge(bridge: Json, links: Sequence[Json]) -> str:
    """Return the bridge's MTU; the kernel lowers it to the smallest of a port by itself."""
    ports = [each["mtu"] for each in links if each.get("master") == bridge["ifname"]]
    is_made_so = bridge["mtu"] == min(ports, default=0) < int(MTU)
    return MTU if is_made_so else str(bridge["mtu"])


def static_stations(live: KernelState) -> list[Json]:
    """Return the bridge's forwarding entries that were added by hand."""
    own = {each.get("address") for each in live.links}
    return [
        each
        for each in live.stations
        if each.get("state") == "static"
        or (each.get("state") == "permanent" and "master" in each and each["mac"] not in own)
    ]


def station(entry: Json) -> str:
    return f"{entry['mac']} dev {entry['ifname']}"


def rules_before_main(host: Json, live: KernelState) -> list[Json]:
    """Return routing policy rules that decide on VMs' packets before the main table."""
    bridge, network = host["bridge"], IPv4Interface(host["bridge"]["address"]).network
    found = []
    for rule in live.policy:
        if _asks_main(rule):
            break
        if rule.get("table") in ("local", "main") or not _is_about(rule, network, bridge["name"]):
            continue
        routes = [each for each in live.routes if each.get("table") == rule.get("table")]
        if "table" not in rule or any(_leads(each, network) for each in routes):
            found.append(rule)
    return found


def rules6_of_bridge(host: Json, live: KernelState) -> list[Json]:
    """Return IPv6 routing policy rules that name the bridge."""
    name = host["bridge"]["name"]
    return [each for each in live.policy6 if name in (each.get("iif"), each.get("oif"))]


def _asks_main(rule: Json) -> bool:
    """Whether a rule asks the main table for every packet, with or without its default route."""
    known = {"priority", "src", "table", "protocol", "suppress_prefixlen"}
    is_for_all = rule.get("src") == "all" and set(rule) <= known
    return is_for_all and rule.get("table") == "main" and rule.get("suppress_prefixlen", 0) == 0


def _is_about(rule: Json, network: IPv4Network, bridge: str) -> bool:
    if "not" in rule:  # nearly all packets
        return True
    links = {rule[key] for key in ("iif", "oif") if key in rule}
    if "fwmark" in rule or "l3mdev" in rule or not links <= {bridge, "lo"}:
        return False
    ends = [(rule[key], rule.get(f"{key}len", 32)) for key in ("src", "dst") if key in rule]
    return all(
        end == "all" or IPv4Network(f"{end}/{length}", strict=False).overlaps(network)
        for end, length in ends
    )


def _leads(route: Json, network: IPv4Network) -> bool:
    to = str(route["dst"]).replace("default", "0.0.0.0/0")
    return ":" not in to and IPv4Network(to).overlaps(network)


def foreign_ports(facts: Facts) -> list[str]:
    return [each.removeprefix("port ") for each in facts if each.startswith("port ")]


def declared_kernel() -> Facts:
    return {SETTINGS: {FORWARDING: ("1",)}}


def live_kernel(settings: Mapping[str, str]) -> Facts:
    return {SETTINGS: {FORWARDING: (settings[FORWARDING],)}}

"""The network of VMs, as a deployment declares it and as the kernel has it, as values. Pure.

A part (the bridge, the firewall, one slot) has subjects, such as an interface; a subject has
properties, and each property has lines of text. `declared_…` functions return what a part should
be, `live_…` functions what the kernel's answers say, which `network_state` reads.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from typing import Any

from polydev.host_layout import GATEWAY_MAC, GUEST_GATEWAY
from polydev.hosttool.slots import MTU, PORT_FLAGS, TAP, UPLINK, Slot, settings_of

BRIDGE_PART, FIREWALL_PART, KERNEL_PART = "bridge", "firewall", "kernel"
FORWARDING = "net.ipv4.ip_forward"
# Of the bridge itself, by the names that `ip` gives them.
BRIDGE_OPTIONS = {"stp_state": "0", "vlan_filtering": "0", "group_fwd_mask": "0"}
# The worst metric: every other route to the VMs' network is better.
WORST_METRIC = 4294967295
# Differences in these can only block traffic, not allow more of it.
ONLY_CLOSING = frozenset(
    {"state", "address", "mtu", "stp_state", "learning", "flood"}
    | {"mcast_flood", "bcast_flood", "guard", "root_block", "locked"}
)
# The routing policy rule that asks the main table, for what earlier rules do not decide.
BY_MAIN = "main"
# The rules for IPv6 that every kernel has. VMs have no IPv6 addresses, so there are no others.
POLICY6 = ("0: local", "32766: main")
MOST_SHOWN_LINES = 3
SETTINGS = "settings"
THERE, MISSING = ("there",), ("missing",)

Lines = tuple[str, ...]
Facts = Mapping[str, Mapping[str, Lines]]
Json = dict[str, Any]


@dataclass(frozen=True)
class KernelState:
    """The kernel's state of one network namespace; `stations` are its bridge's fdb entries."""

    links: list[Json]
    routes: list[Json]
    policy: list[Json]
    policy6: list[Json]
    neighbours: list[Json]
    settings: dict[str, str]
    rules: Lines
    stations: list[Json]


@dataclass(frozen=True)
class Difference:
    """One property that is not as declared; `opens` if it may allow traffic that is blocked."""

    part: str
    what: str
    found: Lines
    declared: Lines
    opens: bool

    @property
    def unexpected(self) -> list[str]:
        return self._lines("-")

    @property
    def missing(self) -> list[str]:
        return self._lines("+")

    def _lines(self, sign: str) -> list[str]:
        """Return lines that only one side has, without blank lines and brackets."""
        lines = [
            each[2:].strip() for each in difflib.ndiff(self.found, self.declared) if each[0] == sign
        ]
        return [each for each in lines if each not in ("", "}")]

    @property
    def text(self) -> str:
        if len(self.found) == len(self.declared) == 1:
            return f"{self.part}: {self.what}: {self.found[0]} instead of {self.declared[0]}"
        sides = (("unexpected", self.unexpected), ("missing", self.missing))
        said = [f"{side}: {_short(lines)}" for side, lines in sides if lines]
        return f"{self.part}: {self.what}: {'; '.join(said)}"

    @property
    def diff(self) -> list[str]:
        """Return lines with `-` for what was found and `+` for what is declared."""
        return [
            *(f"- {self.part}: {self.what}: {line}" for line in self.unexpected),
            *(f"+ {self.part}: {self.what}: {line}" for line in self.missing),
        ]

    def as_dict(self) -> dict[str, object]:
        return {
            "part": self.part,
            "what": self.what,
            "opens": self.opens,
            "text": self.text,
            "diff": self.diff,
        }


def _short(lines: Sequence[str]) -> str:
    rest = len(lines) - MOST_SHOWN_LINES
    return ", ".join(lines[:MOST_SHOWN_LINES]) + (f" and {rest} more" if rest > 0 else "")


def differences(part: str, declared: Facts, live: Facts) -> list[Difference]:
    """Return the differences of the kernel's state from the declared one, and undeclared things."""
    found = []
    for subject, properties in declared.items():
        if subject not in live:
            found.append(Difference(part, subject, MISSING, THERE, opens=False))
            continue
        for name, lines in properties.items():
            now = live[subject].get(name, ())
            # A setting can be missing only with its interface, or on a kernel without IPv6.
            if now != lines and (now or subject != SETTINGS):
                what = f"{subject} {name}"
                found.append(Difference(part, what, now, lines, _opens(name, now, lines)))
    beyond = [subject for subject in live if subject not in declared]
    return found + [Difference(part, each, THERE, MISSING, opens=True) for each in beyond]


def _opens(name: str, found: Lines, declared: Lines) -> bool:
    if name == "rules":
        return True
    only_closes = name in ONLY_CLOSING or name == FORWARDING or name.endswith(".forwarding")
    return not only_closes and not set(found) <= set(declared)


# The bridge


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
            f"to {network}": _routes_into(network, live.routes),
            "policy": (
                *(_rule(each) for each in rules_before_main(host, live)),
                *([BY_MAIN] if any(map(_asks_main, live.policy)) else []),
            ),
            "IPv6 policy": tuple(_rule(each) for each in rules6_of_bridge(host, live)),
        },
        "neighbours": {"permanent": _neighbours(live, {name, *ports})},
        SETTINGS: _settings(settings),
    }
    for link in live.links:
        if link["ifname"] == name:
            options = link.get("linkinfo", {}).get("info_data", {})
            facts[name] = {
                "state": _state(link),
                "kind": (str(link.get("linkinfo", {}).get("info_kind", "none")),),
                "addresses": _addresses(link),
                "mtu": (_mtu_of_bridge(link, live.links),),
                "static stations": tuple(map(station, static_stations(live))),
                **{each: (_word(options.get(each)),) for each in BRIDGE_OPTIONS},
            }
        elif link.get("master") == name and link["ifname"] not in ports:
            facts[f"port {link['ifname']}"] = {}
    return facts


def _mtu_of_bridge(bridge: Json, links: Sequence[Json]) -> str:
    """Return the bridge's MTU; the kernel lowers it to the smallest of a port by itself."""
    ports = [each["mtu"] for each in links if each.get("master") == bridge["ifname"]]
    is_made_so = bridge["mtu"] == min(ports, default=0) < int(MTU)
    return MTU if is_made_so else str(bridge["mtu"])


def _neighbours(live: KernelState, links: Iterable[str]) -> Lines:
    """Return permanent neighbour entries, which were added by hand."""
    found = [each for each in live.neighbours if each["dev"] in links]
    return tuple(sorted(f"{e['dst']} lladdr {e.get('lladdr')} dev {e['dev']}" for e in found))


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


def rules6_of_slot(live: KernelState) -> list[Json]:
    """Return IPv6 routing policy rules, except the kernel's own."""
    return [each for each in live.policy6 if _rule(each) not in POLICY6]


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


def rule_words(rule: Json) -> str:
    """Return a rule in the words of `ip rule`."""
    words = ["not"] if "not" in rule else []
    words += ["priority", str(rule["priority"])]
    for word, key in (("from", "src"), ("to", "dst")):
        if key in rule:
            length = f"/{rule[f'{key}len']}" if f"{key}len" in rule else ""
            words += [word, f"{rule[key]}{length}"]
    for key in ("iif", "oif", "fwmark"):
        words += [key, str(rule[key])] if key in rule else []
    return " ".join([*words, *(["table", str(rule["table"])] if "table" in rule else [])])


def foreign_ports(facts: Facts) -> list[str]:
    return [each.removeprefix("port ") for each in facts if each.startswith("port ")]


def declared_kernel() -> Facts:
    return {SETTINGS: {FORWARDING: ("1",)}}


def live_kernel(settings: Mapping[str, str]) -> Facts:
    return {SETTINGS: {FORWARDING: (settings[FORWARDING],)}}


# A slot


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
                "state": _state(link, flags.get("state") if is_bridge_up else None),
                "mtu": (str(link["mtu"]),),
                # A kernel that does not know a flag cannot have it set.
                **{
                    name: (_word(flags.get(name, wanted == "on")),)
                    for name, wanted in PORT_FLAGS.items()
                },
            }
    return facts


def live_slot(live: KernelState) -> Facts:
    """Return the inside of a slot; interfaces of others count only if they are up."""
    facts: dict[str, Mapping[str, Lines]] = {
        "routes": {
            "of the slot": tuple(
                sorted(_route(each) for each in live.routes if not _is_local(each))
            ),
            "policy": tuple(_rule(each) for each in live.policy),
            "IPv6 policy": tuple(_rule(each) for each in rules6_of_slot(live)),
        },
        "neighbours": {"permanent": _neighbours(live, (TAP, UPLINK))},
        SETTINGS: _settings(live.settings),
        "nftables": {"rules": live.rules},
    }
    for link in live.links:
        name, info = link["ifname"], link.get("linkinfo", {})
        data = info.get("info_data", {})
        if name in ("lo", TAP, UPLINK):
            facts[name] = {
                "state": _state(link),
                "kind": (str(data.get("type") or info.get("info_kind", "none")),),
                "user": (str(data.get("user", "everybody")),),
                "address": (str(link.get("address")),),
                "mtu": (str(link["mtu"]),),
                "addresses": _addresses(link),
            }
        elif "UP" in link["flags"]:
            facts[f"interface {name}"] = {}
    return facts


def foreign_links(facts: Facts) -> list[str]:
    found = [each for each in facts if each.startswith("interface ")]
    return [each.removeprefix("interface ") for each in found]


# Output of `ip -json` and sysctl, as lines


def _state(link: Json, forwards: str | None = None) -> Lines:
    """Return the state of a link; `forwards` is its state as a bridge's port with a carrier."""
    if "UP" not in link["flags"]:
        return ("down",)
    if forwards in ("disabled", "blocking") and "LOWER_UP" in link["flags"]:
        return (f"up but {forwards}",)
    return ("up",)


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def _addresses(link: Json) -> Lines:
    """Return all addresses, also those of IPv6, of which none is declared."""
    found = link.get("addr_info", [])
    return tuple(sorted(f"{each['local']}/{each['prefixlen']}" for each in found))


def _settings(values: Mapping[str, str]) -> dict[str, Lines]:
    return {key: (value,) for key, value in values.items()}


def _is_local(route: Json) -> bool:
    """Whether a route is the kernel's own for an address, or of IPv6, whose addresses count."""
    own = route.get("type") in ("local", "broadcast", "anycast", "multicast")
    return (own and route.get("protocol") == "kernel") or ":" in str(route["dst"])


def _route(route: Json) -> str:
    kind = str(route.get("type", "unicast"))
    words = [] if kind == "unicast" else [kind]
    words.append(str(route["dst"]))
    for word, key in (("via", "gateway"), ("dev", "dev"), ("src", "prefsrc")):
        if key in route:
            words += [word, str(route[key])]
    for hop in route.get("nexthops", []):
        words += ["nexthop", str(hop.get("gateway", "")), str(hop.get("dev", ""))]
    for key in ("metric", "table"):
        if route.get(key, "main") != "main":
            words += [key, str(route[key])]
    return " ".join(words)


def _routes_into(network: IPv4Network, routes: Sequence[Json]) -> Lines:
    """Return every route to the network or to a part of it."""
    found = []
    for route in routes:
        if _is_local(route) or route["dst"] == "default":
            continue
        if IPv4Network(str(route["dst"])).subnet_of(network):
            found.append(_route(route))
    return tuple(sorted(found))


def _rule(rule: Json) -> str:
    said = f"{rule['priority']}: {rule.get('table', rule.get('action', ''))}"
    others = set(rule) - {"priority", "table", "action", "protocol"}
    words = [f"{key} {rule[key]}" for key in sorted(others)]
    return " ".join([said, *(each for each in words if each != "src all")])

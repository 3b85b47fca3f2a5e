"""Read the output of `ip -json` as lines of text. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Network

from polydev.hosttool.network_facts import Json, KernelState, Lines


def link_state(link: Json, forwards: str | None = None) -> Lines:
    """Return the state of a link; `forwards` is its state as a port of a bridge.

    A port without a carrier does not forward. One that got its carrier just now forwards as soon
    as the kernel has processed that: `operstate` is `UP` then (`net/bridge/br_if.c`).
    """
    if "UP" not in link["flags"]:
        return ("down",)
    if forwards in ("disabled", "blocking") and link["operstate"] == "UP":
        return (f"up but {forwards}",)
    return ("up",)


def option_word(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def addresses_of(link: Json) -> Lines:
    """Return all addresses, also those of IPv6, of which none is declared."""
    found = link.get("addr_info", [])
    return tuple(sorted(f"{each['local']}/{each['prefixlen']}" for each in found))


def settings_lines(values: Mapping[str, str]) -> dict[str, Lines]:
    return {key: (value,) for key, value in values.items()}


def is_local_route(route: Json) -> bool:
    """Whether a route is the kernel's own for an address, or of IPv6, whose addresses count."""
    own = route.get("type") in ("local", "broadcast", "anycast", "multicast")
    return (own and route.get("protocol") == "kernel") or ":" in str(route["dst"])


def route_line(route: Json) -> str:
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


def routes_into(network: IPv4Network, routes: Sequence[Json]) -> Lines:
    """Return every route to the network or to a part of it."""
    found = []
    for route in routes:
        if is_local_route(route) or route["dst"] == "default":
            continue
        if IPv4Network(str(route["dst"])).subnet_of(network):
            found.append(route_line(route))
    return tuple(sorted(found))


def rule_line(rule: Json) -> str:
    said = f"{rule['priority']}: {rule.get('table', rule.get('action', ''))}"
    others = set(rule) - {"priority", "table", "action", "protocol"}
    words = [f"{key} {rule[key]}" for key in sorted(others)]
    return " ".join([said, *(each for each in words if each != "src all")])


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


def permanent_neighbours(live: KernelState, links: Iterable[str]) -> Lines:
    """Return permanent neighbour entries, which were added by hand."""
    found = [each for each in live.neighbours if each["dev"] in links]
    return tuple(sorted(f"{e['dst']} lladdr {e.get('lladdr')} dev {e['dev']}" for e in found))

"""Choose the addresses of a lab's link: a /30 that nothing on this machine uses."""

from __future__ import annotations

import json
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

from polydev.errors import LabError
from polydev.processes import run

# Documentation addresses (RFC 5737): no host on the internet has one, and no firewall rule
# about private ranges matches them.
POOL = IPv4Network("198.51.100.0/24")
LINK_PREFIX = 30


def allot(taken: Iterable[IPv4Network]) -> tuple[IPv4Address, IPv4Address]:
    """Return our end and the lab's end of a link that overlaps nothing `taken`.

    Raises LabError if the pool has no such link.
    """
    used = list(taken)
    for link in POOL.subnets(new_prefix=LINK_PREFIX):
        if not any(link.overlaps(each) for each in used):
            ours, theirs = link.hosts()
            return ours, theirs
    raise LabError(
        f"no addresses are left for a lab: all of {POOL} is in use on this machine",
        "end labs that nobody needs (./inv lab.list, ./inv lab.down --name NAME) and look for "
        "routes into it: ip route show table all",
    )


def link_of(address: str) -> IPv4Network:
    return IPv4Network(f"{address}/{LINK_PREFIX}", strict=False)


def routed_networks(routes: str) -> list[IPv4Network]:
    """Return every destination but `default` in the JSON of `ip route`."""
    destinations = [str(route["dst"]) for route in json.loads(routes or "[]")]
    return [IPv4Network(each) for each in destinations if each != "default"]


def networks_in_use() -> list[IPv4Network]:
    """Return the networks that this machine has addresses in or routes to."""
    return routed_networks(run(["ip", "-json", "-4", "route", "show", "table", "all"]).stdout)

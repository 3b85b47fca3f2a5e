"""Checks of the inventory's addresses and networks, against each other and the host's. Pure.

Every check yields the path of a key and what is wrong with its value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING

from polydev.host_layout import GUEST_GATEWAY

if TYPE_CHECKING:
    from polydev.host_setup.inventory_values import HostData

Problem = tuple[str, str]

# The network inside every VM's namespace; it is the same in each.
GUESTS = IPv4Interface(f"{GUEST_GATEWAY}/30").network
# Networks that are not the internet: not globally reachable by IANA's registry
# (https://www.iana.org/assignments/iana-ipv4-special-registry), and multicast.
CLOSED = (
    "0.0.0.0/8",  # this network
    "10.0.0.0/8",  # private
    "100.64.0.0/10",  # shared: carriers, and metadata of some clouds
    "127.0.0.0/8",  # loopback
    "169.254.0.0/16",  # link-local: metadata of clouds
    "172.16.0.0/12",  # private
    "192.0.0.0/24",  # protocol assignments
    "192.0.2.0/24",  # documentation
    "192.88.99.0/24",  # former relays from 6to4
    "192.168.0.0/16",  # private
    "198.18.0.0/15",  # benchmarks
    "198.51.100.0/24",  # documentation
    "203.0.113.0/24",  # documentation
    "224.0.0.0/3",  # multicast, reserved, broadcast
)
THIS_NETWORK = IPv4Network("0.0.0.0/8")
NAMES_PORT = 53
# Networks that the VMs' network must not overlap, and that VMs never reach.
NEVER = {
    THIS_NETWORK: "this network itself",
    IPv4Network("127.0.0.0/8"): "loopback",
    IPv4Network("169.254.0.0/16"): "link-local addresses, where clouds have their metadata",
    IPv4Network("224.0.0.0/3"): "multicast and reserved addresses",
}
PRIVATE = tuple(net for net in map(IPv4Network, CLOSED) if net not in NEVER)
# A route with a shorter prefix is part of a default route, as VPNs set them up.
DEFAULT_ROUTE_BITS = 2


@dataclass(frozen=True)
class HostNetwork:
    """A network of a host: that of its address, or of a route."""

    network: IPv4Network | IPv6Network
    device: str
    address: IPv4Address | IPv6Address | None = None

    def __str__(self) -> str:
        where = f"on {self.device}" if self.device else "in its routes"
        what = f"{self.address}/{self.network.prefixlen}" if self.address else str(self.network)
        return f"{what} {where}"


def contradictions(site: HostData) -> Iterator[Problem]:
    """Yield values that contradict each other on any host."""
    yield from _of_bridge(site.bridge_address)
    for index, network in enumerate(site.reachable):
        if why := _why_not_reachable(network, site.bridge_address.network):
            yield f"reachable.{index}", f"{network} {why}"
    for index, address in enumerate(site.resolvers):
        if why := _why_no_resolver_of_vms(address, site.bridge_address):
            yield f"resolvers.{index}", f"{address} {why}"
    for index, address in enumerate(site.upstream_resolvers):
        if _is_no_host(address):
            yield f"upstream_resolvers.{index}", f"{address} is not the address of a host"
        elif address in site.bridge_address.network:
            words = "lies in the VMs' network; it must be a resolver that the host itself reaches"
            yield f"upstream_resolvers.{index}", f"{address} {words}"
    yield from _of_listen(site)


def _of_listen(site: HostData) -> Iterator[Problem]:
    listen = site.listen.address
    if listen in site.bridge_address.network and listen != site.bridge_address.ip:
        words = f"lies in the VMs' network, where the host is {site.bridge_address.ip}"
        yield "controller_listen", f"{listen} {words}"
    elif site.listen.port == NAMES_PORT and (listen.is_unspecified or listen == site.gateway):
        words = f"port {NAMES_PORT} of {site.gateway} is that of the host's cache of names"
        yield "controller_listen", f"{words}; take another one"
    elif listen in GUESTS:
        yield "controller_listen", f"{listen} lies in {GUESTS}, the network inside every VM"


def _of_bridge(bridge: IPv4Interface) -> Iterator[Problem]:
    network = bridge.network
    if network.overlaps(GUESTS):
        words = f"overlaps {GUESTS}, the network inside every VM; take another one"
    elif found := _first_overlap(network, NEVER):
        words = f"overlaps {found}, which is {NEVER[found]}; take a private network"
    elif not any(network.subnet_of(each) for each in PRIVATE):
        words = (
            "is not a private network; use a part of 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16"
        )
    else:
        return
    yield "bridge_address", f"{network} {words}"


def _why_not_reachable(network: IPv4Network, bridge: IPv4Network) -> str | None:
    if found := _first_overlap(network, NEVER):
        return f"overlaps {found}: VMs never reach {NEVER[found]}; name the networks that they may"
    wider = [each for each in PRIVATE if each != network and each.subnet_of(network)]
    if wider:
        return f"is wider than {wider[0]}, a private network; name each network that VMs may reach"
    if network.subnet_of(bridge):
        return f"lies in {bridge}, the VMs' network: VMs never reach each other"
    if network.subnet_of(GUESTS):
        return f"lies in {GUESTS}, the network inside every VM"
    return None


def _why_no_resolver_of_vms(address: IPv4Address, bridge: IPv4Interface) -> str | None:
    if _is_no_host(address):
        return "is not the address of a host"
    if address.is_loopback:
        return f"would be the VM itself; {bridge.ip} is the host's own cache of names"
    if address in GUESTS:
        return f"lies in {GUESTS}, the network inside every VM"
    if address in bridge.network and address != bridge.ip:
        return f"lies in the VMs' network, where only the host, {bridge.ip}, answers"
    return None


def conflicts(site: HostData, host: Iterable[HostNetwork], vms: str) -> Iterator[Problem]:
    """Yield values that overlap networks and addresses of this host.

    Those of `vms`, the bridge of its VMs, are from an earlier deployment and do not count.
    """
    own = [each for each in host if each.device != vms]
    bridge = site.bridge_address.network
    taken = [each for each in own if bridge.overlaps(each.network) and not _is_default(each)]
    if taken:
        words = f"{bridge} overlaps a network that the host has already, {taken[0]}"
        yield "bridge_address", f"{words}; take another one"
    addresses = {each.address for each in own} - {None}
    for index, address in enumerate(site.resolvers):
        if address in addresses:
            words = "is the host's own address, which VMs do not reach"
            better = f"{site.bridge_address.ip} is the host's cache of names"
            yield f"resolvers.{index}", f"{address} {words}; {better}"


def open_to_the_internet(site: HostData, host: Iterable[HostNetwork]) -> list[str]:
    """Return the public addresses of the host at which the controller would listen."""
    listen = site.listen.address
    if not listen.is_unspecified:
        return [str(listen)] if listen.is_global else []
    versions = (4, 6) if listen.version == 6 else (4,)
    own = [each.address for each in host if each.address and each.address.version in versions]
    return [str(address) for address in own if address.is_global]


def _is_default(found: HostNetwork) -> bool:
    return found.address is None and found.network.prefixlen < DEFAULT_ROUTE_BITS


def _is_no_host(address: IPv4Address) -> bool:
    return address in THIS_NETWORK or address.is_multicast or address.is_reserved


def _first_overlap(network: IPv4Network, others: Iterable[IPv4Network]) -> IPv4Network | None:
    return next((each for each in others if network.overlaps(each)), None)

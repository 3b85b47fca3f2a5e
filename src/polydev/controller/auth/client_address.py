"""Where a request comes from: its peer, or what a trusted proxy says of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from starlette.datastructures import Headers
from starlette.types import Scope

Address = IPv4Address | IPv6Address
Networks = Sequence[IPv4Network | IPv6Network]

IPV6_PREFIX = 64
MOST_ADDRESS_CHARACTERS = 64


def address_of(text: str) -> Address | None:
    """The address in an entry of X-Forwarded-For, which may have a port; None if it has none."""
    host = text.strip().strip('"')
    if len(host) > MOST_ADDRESS_CHARACTERS:
        return None
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def network_of(address: Address) -> str:
    """What counts as one place: an IPv4 address, or a network of IPv6, in which whoever has one
    address has them all."""
    if isinstance(address, IPv4Address):
        return str(address)
    return str(IPv6Network((address, IPV6_PREFIX), strict=False))


def is_trusted(address: Address, trusted: Networks) -> bool:
    return any(address in network for network in trusted)


def place_of(peer: str | None, trusted: Networks) -> str | None:
    """The place of a peer; None for a Unix socket and a trusted proxy, behind which is anybody."""
    address = address_of(peer or "")
    return None if address is None or is_trusted(address, trusted) else network_of(address)


def asked_from(scope: Scope) -> tuple[str | None, list[str]]:
    """The peer's address, and the values of X-Forwarded-For, of a request or an upgrade."""
    client = scope.get("client")
    return client[0] if client else None, Headers(scope=scope).getlist("x-forwarded-for")


def source_of(
    peer: str | None, forwarded_for: Iterable[str] = (), trusted: Networks = ()
) -> str | None:
    """The place for which failed logins are counted; None where they are not.

    `forwarded_for` has the values of X-Forwarded-For. Each proxy adds whom it was asked by at the
    end, and what stands before may be made up. So the last address that is no trusted proxy's
    counts. An entry that is no address counts as a place of its own of the proxy that passed it on.

    This host itself is None unless it is a trusted proxy. A proxy on it is the peer of everybody,
    so if failures of that were counted, one stranger could shut out all. Tokens are too long to be
    guessed: the limit keeps work and log lines down.
    """
    address = address_of(peer or "")
    if address is None:  # a Unix socket
        return None
    if not is_trusted(address, trusted):
        return None if address.is_loopback else network_of(address)
    for entry in _entries(forwarded_for):
        told = address_of(entry)
        if told is None:
            return f"not an address, from {address}"
        if not is_trusted(told, trusted):
            return network_of(told)
        address = told
    return None


def _entries(values: Iterable[str]) -> Iterator[str]:
    """All entries of these headers, the last one first."""
    entries = (each.strip() for each in ",".join(values).split(","))
    return reversed([each for each in entries if each])

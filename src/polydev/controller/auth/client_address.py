"""The client's address of a request: its peer, or what a trusted proxy says of it."""

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
    """Return the address in an entry of X-Forwarded-For, without its port, or None."""
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
    """Return what limits count as one client: an IPv4 address, or an IPv6 network, since a client
    can have all addresses of it."""
    if isinstance(address, IPv4Address):
        return str(address)
    return str(IPv6Network((address, IPV6_PREFIX), strict=False))


def is_trusted(address: Address, trusted: Networks) -> bool:
    return any(address in network for network in trusted)


def place_of(peer: str | None, trusted: Networks) -> str | None:
    """Return the peer's address or network; None for a Unix socket and for trusted proxies."""
    address = address_of(peer or "")
    return None if address is None or is_trusted(address, trusted) else network_of(address)


def asked_from(scope: Scope) -> tuple[str | None, list[str]]:
    """Return a request's peer address and the values of its X-Forwarded-For headers."""
    client = scope.get("client")
    return client[0] if client else None, Headers(scope=scope).getlist("x-forwarded-for")


def source_of(
    peer: str | None, forwarded_for: Iterable[str] = (), trusted: Networks = ()
) -> str | None:
    """Return the address or network that failed logins are counted for; None: they are not.

    `forwarded_for` has the values of X-Forwarded-For. Each proxy appends the address of its own
    peer, and a client can forge all entries before. So the last address that is not a trusted
    proxy's counts. An entry that is not an address counts as one client of the proxy that sent it.

    The result is None for this host itself, unless it is a trusted proxy. A proxy on it is the peer
    of all clients: if its failures were counted, one client could lock out all. Tokens are too long
    to be guessed; the limit only keeps load and logs small.
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
    """Return all entries of these headers, the last one first."""
    entries = (each.strip() for each in ",".join(values).split(","))
    return reversed([each for each in entries if each])

"""Where the controller listens: `ADDRESS:PORT` of the inventory, checked. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

HIGHEST_PORT = 65535
FORM = "it is an IP address and a port, as in 127.0.0.1:4000, 0.0.0.0:4000 or [::1]:4000"


@dataclass(frozen=True)
class ListenAddress:
    """An address of the host, or all of them, and a port."""

    address: IPv4Address | IPv6Address
    port: int

    def __str__(self) -> str:
        """As systemd reads it, and as it stands in a URL."""
        return f"{self.host}:{self.port}"

    @property
    def host(self) -> str:
        return f"[{self.address}]" if self.address.version == 6 else str(self.address)

    @property
    def from_host(self) -> IPv4Address | IPv6Address:
        """The address at which the host itself reaches the controller."""
        if not self.address.is_unspecified:
            return self.address
        return ip_address("127.0.0.1" if self.address.version == 4 else "::1")


def parse_listen_address(text: str) -> ListenAddress:
    """Raise ValueError, saying what is wrong and what the form is."""
    name, colon, port_text = text.rpartition(":")
    if not colon:
        raise _wrong(text, "it has no address, or no port")
    if not (port_text.isascii() and port_text.isdecimal()):
        raise _wrong(text, f"{port_text!r} is no port")
    if not 1 <= int(port_text) <= HIGHEST_PORT:
        raise _wrong(text, f"port {port_text} is not from 1 to {HIGHEST_PORT}")
    is_bracketed = name.startswith("[") and name.endswith("]")
    try:
        address = ip_address(name[1:-1] if is_bracketed else name)
    except ValueError:
        raise _wrong(text, f"{name!r} is no IP address") from None
    if is_bracketed != isinstance(address, IPv6Address):
        raise _wrong(text, "an IPv6 address, and no other, stands in brackets")
    if isinstance(address, IPv6Address) and address.scope_id:
        raise _wrong(text, "an address with a scope cannot be listened at")
    if isinstance(address, IPv6Address) and (address.is_link_local or address.ipv4_mapped):
        raise _wrong(text, f"{address} cannot be listened at by itself")
    if address.is_multicast or address == IPv4Address("255.255.255.255"):
        raise _wrong(text, f"{address} is the address of no host")
    return ListenAddress(address, int(port_text))


def _wrong(text: str, why: str) -> ValueError:
    return ValueError(f"{text!r}: {why}; {FORM}")

"""The controller's listen address: `ADDRESS:PORT` of the inventory, checked. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address

from polydev.validation import HIGHEST_PORT

THIS_NETWORK = IPv4Network("0.0.0.0/8")
FORM = "write an IP address and a port, as in 127.0.0.1:4000, 0.0.0.0:4000 or [::1]:4000"


@dataclass(frozen=True)
class ListenAddress:
    """An address of the host, or the one that means all of them, and a port."""

    address: IPv4Address | IPv6Address
    port: int

    def __str__(self) -> str:
        """The form for systemd and URLs."""
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
    """Return the parsed address. Raises ValueError with what is wrong and the correct form."""
    name, colon, port_text = text.rpartition(":")
    if not colon:
        raise _wrong(text, "address or port is missing")
    if not (port_text.isascii() and port_text.isdecimal()):
        raise _wrong(text, f"{port_text!r} is not a port")
    if len(port_text) > len(str(HIGHEST_PORT)) or not 1 <= int(port_text) <= HIGHEST_PORT:
        raise _wrong(text, f"port {port_text} is not from 1 to {HIGHEST_PORT}")
    is_bracketed = name.startswith("[") and name.endswith("]")
    try:
        address = ip_address(name[1:-1] if is_bracketed else name)
    except ValueError:
        raise _wrong(text, f"{name!r} is not an IP address") from None
    if is_bracketed != isinstance(address, IPv6Address):
        raise _wrong(text, "write an IPv6 address in brackets, any other without")
    if isinstance(address, IPv6Address) and address.scope_id:
        raise _wrong(text, "a server cannot listen at an address with a scope")
    if isinstance(address, IPv6Address) and (address.is_link_local or address.ipv4_mapped):
        raise _wrong(text, f"{address}: a server cannot listen at that address")
    is_reserved = isinstance(address, IPv4Address) and (
        address.is_reserved or (address in THIS_NETWORK and not address.is_unspecified)
    )
    if address.is_multicast or is_reserved:
        raise _wrong(text, f"{address} is not the address of a host")
    return ListenAddress(address, int(port_text))


def _wrong(text: str, why: str) -> ValueError:
    return ValueError(f"{text!r}: {why}; {FORM}")

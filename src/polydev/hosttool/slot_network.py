"""Slots: for each VM a network namespace with its TAP, joined to the bridge by a veth.

    guest 172.16.0.2 -- tap0 [namespace slot-N] uplink -- vm-N [bridge br-vm] -- the host
                             translates to 192.168.100.N

Every guest has the address 172.16.0.2. Its namespace drops packets from other addresses and
translates this one to the slot's address. The bridge's ports are isolated, so no slot reaches
another. The commands are values; only `up`, `mend` and `down` run them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path

from polydev.host_layout import GATEWAY_MAC, GUEST_ADDRESS, GUEST_GATEWAY, GUEST_PORTS, slot_address
from polydev.hosttool.errors import HostError

TAP = "tap0"
UPLINK = "uplink"
# Of every interface, as the kernel and the guest have it by themselves.
MTU = "1500"
HOST_FILE = Path("/etc/polydev/host.json")
NAMESPACES = Path("/run/netns")
# Settings of a port in the bridge, by the names that `ip` gives them.
PORT_FLAGS = {
    "isolated": "on",
    "hairpin": "off",
    "proxy_arp": "off",
    "proxy_arp_wifi": "off",
    "vlan_tunnel": "off",
    "neigh_suppress": "off",
    "mcast_to_unicast": "off",
    "guard": "off",
    "root_block": "off",
    "fastleave": "off",
    "locked": "off",
    "learning": "on",
    "flood": "on",
    "mcast_flood": "on",
    "bcast_flood": "on",
}
# Settings of each interface of a slot. A guest must not configure the slot, and IPv6 is off.
INTERFACE_SETTINGS = {
    "ipv6.conf.{}.disable_ipv6": "1",
    "ipv6.conf.{}.accept_ra": "0",
    "ipv4.conf.{}.forwarding": "1",
    "ipv4.conf.{}.accept_redirects": "0",
    "ipv4.conf.{}.accept_source_route": "0",
    "ipv4.conf.{}.proxy_arp": "0",
    "ipv4.conf.{}.route_localnet": "0",
}


@dataclass(frozen=True)
class Slot:
    """The network of one VM; DNS queries of its guest are redirected to `resolver`, if any."""

    number: int
    bridge: str
    network: IPv4Interface
    resolver: str | None

    @property
    def namespace(self) -> str:
        return f"slot-{self.number}"

    @property
    def user(self) -> str:
        """The user of the VM's process, who alone may use the TAP."""
        return f"polydev-vm-{self.number}"

    @property
    def port(self) -> str:
        """The veth's end in the bridge."""
        return f"vm-{self.number}"

    @property
    def address(self) -> str:
        return str(slot_address(self.network.network, self.number))

    @property
    def hardware_address(self) -> str:
        """Always the same for a slot, since neighbours cache it."""
        return "02:00:" + slot_address(self.network.network, self.number).packed.hex(":")

    @property
    def gateway(self) -> str:
        return str(self.network.ip)

    @property
    def prefix(self) -> int:
        return self.network.network.prefixlen


def slot_of(number: int, host: dict[str, object]) -> Slot:
    """Return slot `number` of a host. Raises HostError `no-slot` if the host does not have it."""
    numbers, bridge = host.get("slots"), host.get("bridge")
    if not isinstance(numbers, list) or not isinstance(bridge, dict) or number not in numbers:
        raise HostError(
            "no-slot", f"this host has no slot {number}", f"{HOST_FILE} on the host lists them"
        )
    resolvers = host.get("resolvers")
    wanted = resolvers if isinstance(resolvers, list) and host.get("translatesNames") else []
    return Slot(
        number,
        str(bridge["name"]),
        IPv4Interface(bridge["address"]),
        str(wanted[0]) if wanted else None,
    )


def settings_of(slot: Slot) -> dict[str, str]:
    """Return the kernel settings of the namespace, also those of future interfaces."""
    return {"net.ipv4.ip_forward": "1"} | {
        f"net.{name.format(interface)}": value
        for interface in ("all", "default", TAP, UPLINK)
        for name, value in INTERFACE_SETTINGS.items()
    }


def veth_of(slot: Slot) -> str:
    """Return lines for `ip -batch`: the veth pair, both ends down and outside the bridge."""
    return f"""\
link add {slot.port} type veth peer name {UPLINK} address {slot.hardware_address} \
netns {slot.namespace}
"""


def port_of(slot: Slot) -> str:
    """Return lines for `ip -batch`: the slot's port in the bridge, isolated before it is up.

    The port goes down first, which makes the bridge forward its packets again if that was off.
    """
    flags = " ".join(f"{name} {value}" for name, value in PORT_FLAGS.items())
    return f"""\
link set {slot.port} down
link set {slot.port} master {slot.bridge}
link set {slot.port} mtu {MTU}
link set {slot.port} type bridge_slave {flags}
link set {slot.port} up
"""


def inside_of(slot: Slot) -> str:
    """Return lines for `ip -batch` in the namespace; they may be repeated."""
    return f"""\
rule flush
rule add priority 32766 lookup main
rule add priority 32767 lookup default
route flush table all protocol boot
route flush table all protocol static
neighbour flush dev {UPLINK} nud permanent
neighbour flush dev {TAP} nud permanent
addr flush dev {UPLINK}
addr flush dev {TAP}
link set lo up
link set {UPLINK} address {slot.hardware_address} mtu {MTU}
addr add {slot.address}/{slot.prefix} dev {UPLINK}
link set {UPLINK} up
route add default via {slot.gateway}
addr add {GUEST_GATEWAY}/30 dev {TAP}
link set {TAP} address {GATEWAY_MAC} mtu {MTU} up
"""


def rules_of(slot: Slot) -> str:
    """Return all rules of the namespace, for `nft -f`."""
    ports = ", ".join(map(str, GUEST_PORTS))
    names = ""
    if slot.resolver:
        names = "".join(
            f'\t\tiifname "{TAP}" {kind} dport 53 dnat to {slot.resolver}\n'
            for kind in ("udp", "tcp")
        )
    return f"""\
table ip slot {{
\tchain input {{
\t\ttype filter hook input priority filter; policy drop;
\t\tct state invalid drop
\t\tct state established,related accept
\t\tiifname "{TAP}" ip saddr {GUEST_ADDRESS} icmp type echo-request accept
\t\tiifname "{UPLINK}" icmp type echo-request accept
\t}}
\tchain forward {{
\t\ttype filter hook forward priority filter; policy drop;
\t\tiifname "{TAP}" ip saddr != {GUEST_ADDRESS} drop
\t\tct state invalid drop
\t\tct state established,related accept
\t\tiifname "{TAP}" oifname "{UPLINK}" accept
\t\tiifname "{UPLINK}" oifname "{TAP}" ct status dnat accept
\t}}
\tchain to_guest {{
\t\ttype nat hook prerouting priority dstnat;
\t\tiifname "{UPLINK}" ip daddr {slot.address} tcp dport {{ {ports} }} dnat to {GUEST_ADDRESS}
{names}\t}}
\tchain from_guest {{
\t\ttype nat hook postrouting priority srcnat;
\t\toifname "{UPLINK}" ip saddr {GUEST_ADDRESS} snat to {slot.address}
\t}}
\tchain translated {{
\t\ttype filter hook postrouting priority srcnat + 10; policy accept;
\t\toifname "{UPLINK}" ip saddr != {slot.address} drop
\t}}
}}
table ip6 slot {{
\tchain input {{
\t\ttype filter hook input priority filter; policy drop;
\t}}
\tchain forward {{
\t\ttype filter hook forward priority filter; policy drop;
\t}}
\tchain output {{
\t\ttype filter hook output priority filter; policy drop;
\t}}
}}
table arp slot {{
\tchain input {{
\t\ttype filter hook input priority filter; policy accept;
\t\tiifname "{TAP}" arp saddr ip != {GUEST_ADDRESS} drop
\t}}
}}
"""


Command = tuple[list[str], str]


def port_commands(slot: Slot) -> list[Command]:
    """Return commands that configure the slot's port in the bridge; they may be repeated."""
    return [(["ip", "-batch", "-"], port_of(slot))]


def setting_commands(slot: Slot) -> list[Command]:
    """Return commands that configure a slot with existing interfaces; they may be repeated.

    IPv6 is off and the rules are loaded before any interface is up.
    """
    inside = ["ip", "netns", "exec", slot.namespace]
    settings = [f"{key}={value}" for key, value in settings_of(slot).items()]
    return [
        # A kernel without IPv6 lacks some of the keys.
        ([*inside, "sysctl", "-q", "-e", "-w", *settings], ""),
        ([*inside, "nft", "-f", "-"], f"flush ruleset\n{rules_of(slot)}"),
        *port_commands(slot),
        (["ip", "-n", slot.namespace, "-batch", "-"], inside_of(slot)),
    ]


def slot_commands(slot: Slot) -> list[Command]:
    """Return the commands that create a slot: programs, each with its input."""
    tap = f"tuntap add dev {TAP} mode tap user {slot.user}\n"
    return [
        (["ip", "netns", "add", slot.namespace], ""),
        (["ip", "-batch", "-"], veth_of(slot)),
        (["ip", "-n", slot.namespace, "-batch", "-"], tap),
        *setting_commands(slot),
    ]


def read_host(path: Path = HOST_FILE) -> dict[str, object]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise HostError("no-host", f"cannot read {path}: {error}", "deploy this host") from error
    return dict(found)


def up(number: int) -> dict[str, object]:
    """Create a slot, after removing the rest of an earlier one. Raises HostError `slot-failed`."""
    slot = slot_of(number, read_host())
    down(number)
    try:
        for argv, text in slot_commands(slot):
            _run(argv, text)
    except HostError:
        down(number)
        raise
    return {"slot": number, "namespace": slot.namespace, "address": slot.address}


def mend(slot: Slot, *, only_port: bool) -> None:
    """Configure a slot again as declared, also under a running VM. Raises HostError."""
    for argv, text in port_commands(slot) if only_port else setting_commands(slot):
        _run(argv, text)


def down(number: int) -> dict[str, object]:
    """Remove a slot; its veth is removed with its namespace."""
    there = (NAMESPACES / f"slot-{number}").exists()
    if there:
        _run(["ip", "netns", "delete", f"slot-{number}"], "")
    # The kernel removes a namespace later than its name; the port in the bridge must go now.
    if Path(f"/sys/class/net/vm-{number}").exists():
        _run(["ip", "link", "delete", f"vm-{number}"], "", may_fail=True)
    return {"slot": number, "removed": there}


def existing_slots() -> dict[str, object]:
    """Return the slots that exist."""
    names = sorted(path.name for path in NAMESPACES.glob("slot-*"))
    return {"slots": sorted(int(name.removeprefix("slot-")) for name in names)}


def _run(argv: list[str], text: str, *, may_fail: bool = False) -> None:
    import subprocess

    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0 and not may_fail:
        raise HostError("slot-failed", f"`{' '.join(argv)}` failed: {done.stderr.strip()}")

"""Network of a deployed host: bridge, slots, firewall, names, ports."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from testinfra.host import Host

from tests.spec.host.conftest import Site

TABLE = "inet polydev"
CLOSED = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"]
CLOSED += ["127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4"]
CLOSED += ["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "198.18.0.0/15"]
CLOSED += ["0.0.0.0/8", "192.0.0.0/24", "192.88.99.0/24"]


def as_json(host: Host, command: str) -> Any:
    return json.loads(host.check_output(command))


def chain(host: Host, name: str) -> list[str]:
    """The rules of a chain of ours, in their order."""
    text = host.check_output(f"nft -y list chain {TABLE} {name}")
    return [line.strip() for line in text.splitlines()[2:-2]]


@pytest.fixture(scope="module")
def sockets(host: Host) -> list[list[str]]:
    """Listening sockets: protocol, state, queues, local address, peer, processes."""
    return [line.split() for line in host.check_output("ss -Hlntup").splitlines()]


@pytest.fixture(scope="module")
def slots(host: Host, site: Site) -> dict[int, dict[str, Any]]:
    """The interfaces, routes and rules of each slot's namespace."""
    script = (
        "import json, subprocess, sys\n"
        "def ask(*words):\n"
        "    return subprocess.run(words, capture_output=True, text=True, check=True).stdout\n"
        "found = {}\n"
        "for number in sys.argv[1:]:\n"
        "    name = f'slot-{number}'\n"
        "    inside = ['ip', 'netns', 'exec', name]\n"
        "    found[number] = {\n"
        "        'links': json.loads(ask('ip', '-n', name, '-d', '-json', 'address')),\n"
        "        'routes': json.loads(ask('ip', '-n', name, '-json', 'route')),\n"
        "        'rules': ask(*inside, 'nft', '-y', 'list', 'ruleset'),\n"
        "        'forward': ask(*inside, 'sysctl', '-n', 'net.ipv4.ip_forward').strip(),\n"
        "        'ipv6': ask('ip', '-n', name, '-6', 'address').strip(),\n"
        "    }\n"
        "print(json.dumps(found))"
    )
    numbers = " ".join(map(str, site.slots))
    said = host.check_output(f"/usr/bin/python3 -c %s {numbers}", script)
    return {int(number): each for number, each in json.loads(said).items()}


class TestBridge:
    def test_bridge_is_up_with_its_address(self, host: Host, site: Site) -> None:
        (link,) = as_json(host, f"ip -json address show dev {site.bridge}")
        assert "UP" in link["flags"]
        addresses = [f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"]]
        assert addresses == [str(site.network)]

    def test_bridge_ports_are_the_slots_and_isolated(self, host: Host, site: Site) -> None:
        ports = {
            each["ifname"]: each
            for each in as_json(host, "bridge -d -json link show")
            if each.get("master") == site.bridge
        }
        assert set(ports) == {f"vm-{number}" for number in site.slots}
        open_ports = [name for name, each in ports.items() if not each["isolated"]]
        assert not open_ports, "these ports reach other slots"

    def test_vm_network_is_unreachable_without_bridge(self, host: Host, site: Site) -> None:
        routes = as_json(host, f"ip -json route show {site.network.network}")
        found = [(each.get("type", "unicast"), each.get("metric", 0)) for each in routes]
        assert sorted(found) == [("unicast", 0), ("unreachable", 4294967295)]

    def test_network_is_as_declared_and_watched(self, host: Host) -> None:
        found = as_json(host, "/opt/polydev-ai/bin/polydev-host network check")
        assert found == {"ok": True, "differences": []}
        assert as_json(host, "cat /run/polydev/network.json")["at"] > 0


class TestSlots:
    def test_namespaces_are_those_of_the_inventory(self, host: Host, site: Site) -> None:
        said = host.check_output("ls /run/netns").split()
        own = {name for name in said if name.startswith("slot-")}
        assert own == {f"slot-{number}" for number in site.slots}

    def test_interfaces(self, site: Site, slots: dict[int, dict[str, Any]]) -> None:
        for number, slot in slots.items():
            links = {link["ifname"]: link for link in slot["links"]}
            assert set(links) == {"lo", "tap0", "uplink"}, f"slot {number}"
            assert links["tap0"]["linkinfo"]["info_kind"] == "tun"
            assert links["tap0"]["linkinfo"]["info_data"]["type"] == "tap"
            # Only the user of the slot's VM may open it.
            assert links["tap0"]["linkinfo"]["info_data"]["user"] == site.vm_user(number)
            outside = f"{site.address(number)}/{site.network.network.prefixlen}"
            assert ipv4_addresses(links["tap0"]) == ["172.16.0.1/30"]
            assert ipv4_addresses(links["uplink"]) == [outside]
            # A fixed address keeps the neighbours' ARP entries valid over a restart of the slot.
            fixed = "02:00:" + IPv4Address(site.address(number)).packed.hex(":")
            assert links["uplink"]["address"] == fixed

    def test_slots_have_default_route(self, site: Site, slots: dict[int, dict[str, Any]]) -> None:
        for number, slot in slots.items():
            gateways = [route["gateway"] for route in slot["routes"] if route["dst"] == "default"]
            assert (gateways, slot["forward"]) == ([site.gateway], "1"), f"slot {number}"

    def test_rules(self, site: Site, slots: dict[int, dict[str, Any]]) -> None:
        for number, slot in slots.items():
            address = site.address(number)
            for rule in (
                "type filter hook input priority 0; policy drop;",
                "type filter hook forward priority 0; policy drop;",
                'iifname "tap0" ip saddr != 172.16.0.2 drop',
                'iifname "tap0" arp saddr ip != 172.16.0.2 drop',
                f'iifname "uplink" ip daddr {address} tcp dport {{ 5901, 6080, 8080 }} dnat to '
                "172.16.0.2",
                f'oifname "uplink" ip saddr 172.16.0.2 snat to {address}',
                f'oifname "uplink" ip saddr != {address} drop',
                "ct state invalid drop",
            ):
                assert rule in slot["rules"], f"slot {number}"

    def test_slots_have_no_ipv6(self, slots: dict[int, dict[str, Any]]) -> None:
        assert {number for number, slot in slots.items() if slot["ipv6"]} == set()

    def test_slots_translate_dns_for_private_resolvers_only(
        self, site: Site, slots: dict[int, dict[str, Any]]
    ) -> None:
        """Guests reach public resolvers directly, and private ones through NAT of the slot."""
        for number, slot in slots.items():
            rules = slot["rules"]
            wanted = not site.public_resolvers
            assert (f"dport 53 dnat to {site.resolvers[0]}" in rules) == wanted, f"slot {number}"


def ipv4_addresses(link: dict[str, Any]) -> list[str]:
    return [
        f"{each['local']}/{each['prefixlen']}"
        for each in link["addr_info"]
        if each["family"] == "inet"
    ]


class TestFirewall:
    def test_nftables_hooks_come_first(self, host: Host) -> None:
        text = host.check_output(f"nft -y list table {TABLE}")
        assert "type filter hook input priority -10; policy accept;" in text
        assert "type filter hook forward priority -10; policy accept;" in text
        assert "type nat hook postrouting priority 100; policy accept;" in text

    def test_every_packet_of_a_vm_is_filtered(self, host: Host, site: Site) -> None:
        assert chain(host, "input")[1:] == [f'iifname "{site.bridge}" jump from_vm_to_host']
        assert chain(host, "forward")[1:] == [
            f'iifname "{site.bridge}" jump from_vm',
            f'oifname "{site.bridge}" jump to_vm',
            f"ip daddr {site.network.network} drop",
        ]

    def test_vms_reach_only_dns_of_the_host(self, host: Host, site: Site) -> None:
        assert chain(host, "from_vm_to_host") == [
            "ct state invalid drop",
            "ct state established,related accept",
            f"ip saddr != {vm_range(site)} drop",
            f"ip daddr {site.gateway} udp dport 53 accept",
            f"ip daddr {site.gateway} tcp dport 53 accept",
            "drop",
        ]

    def test_vms_reach_neither_vms_nor_private_networks(self, host: Host, site: Site) -> None:
        rules = chain(host, "from_vm")
        assert rules[:6] == [
            "meta nfproto ipv6 drop",
            f"ip saddr != {vm_range(site)} drop",
            f'oifname "{site.bridge}" drop',
            f"ip daddr {site.network.network} drop",
            "ct state invalid drop",
            "ct state established,related accept",
        ]
        assert rules[-1] == "ip daddr @closed drop"

    def test_closed_networks(self, host: Host) -> None:
        (entry,) = (
            each["set"]
            for each in as_json(host, f"nft -j list set {TABLE} closed")["nftables"]
            if "set" in each
        )
        prefixes = [each["prefix"] for each in entry["elem"]]
        closed = [IPv4Network(f"{each['addr']}/{each['len']}") for each in prefixes]
        for network in map(IPv4Network, CLOSED):
            assert any(network.subnet_of(each) for each in closed), f"{network} is open"

    def test_connections_to_vms_are_dropped(self, host: Host) -> None:
        assert chain(host, "to_vm") == [
            "ct state invalid drop",
            "ct state established,related accept",
            "drop",
        ]

    def test_packets_of_vms_pass_the_bridge_only(self, host: Host, site: Site) -> None:
        elsewhere = f'{{ "lo", "{site.bridge}" }}'
        network = site.network.network
        assert chain(host, "arriving")[1:] == [f"iifname != {elsewhere} ip saddr {network} drop"]
        assert chain(host, "output")[1:] == [
            f"ip daddr {network} oifname != {elsewhere} reject with icmp host-unreachable"
        ]
        assert chain(host, "leaving")[1:] == [f"ip saddr {network} oifname != {elsewhere} drop"]

    def test_vms_are_masqueraded(self, host: Host, site: Site) -> None:
        assert chain(host, "nat")[1:] == [
            f'ip saddr {site.network.network} oifname != "{site.bridge}" masquerade'
        ]

    def test_firewall_restart_restores_same_table(self, host: Host) -> None:
        """Compare the kernel's table with the one that the file makes in an empty namespace."""
        live = host.check_output(f"nft -s list table {TABLE}")
        fresh = host.check_output(
            "unshare --net sh -c %s",
            f"nft -f /etc/polydev/firewall.nft && nft -s list table {TABLE}",
        )
        assert live == fresh


def vm_range(site: Site) -> str:
    first, last = site.address(site.slots[0]), site.address(site.slots[-1])
    return first if first == last else f"{first}-{last}"


class TestPorts:
    def test_systemd_listens_on_controller_port(self, site: Site, sockets: list[list[str]]) -> None:
        (found,) = [each for each in sockets if each[4].endswith(f":{site.port}")]
        assert '"systemd",pid=1,' in found[6], "a restart would refuse connections"
        assert int(found[3]) >= 4096, "the backlog is short"

    def test_dns_listens_on_the_bridge_only(
        self, host: Host, site: Site, sockets: list[list[str]]
    ) -> None:
        process = host.check_output("systemctl show -p MainPID --value polydev-dns.service")
        own = {(each[0], each[4]) for each in sockets if f"pid={process}," in each[-1]}
        assert own == {("udp", f"{site.gateway}:53"), ("tcp", f"{site.gateway}:53")}

    def test_every_slot_has_a_dns_name(self, host: Host, site: Site) -> None:
        text = host.check_output("cat /etc/polydev/dns.conf")
        names = [line for line in text.splitlines() if line.startswith("host-record=")]
        assert names == [
            f"host-record=vm-{number}.vm.internal,{site.address(number)}" for number in site.slots
        ]


@pytest.mark.parametrize(
    ("key", "least"), [("net.ipv4.ip_forward", 1), ("net.core.somaxconn", 4096)]
)
def test_kernel_setting(host: Host, key: str, least: int) -> None:
    assert int(host.check_output(f"sysctl -n {key}")) >= least
    kept = host.check_output("cat /etc/sysctl.d/60-polydev.conf")
    values = dict(line.split(" = ") for line in kept.splitlines())
    assert int(values[key]) >= least

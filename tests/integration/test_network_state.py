"""Changes of the VMs' network by hand: each is reported and repaired, also under a running VM.

In namespaces of this machine (`tests/netns.py`); `test_deploy.py` does it by drift and deploy.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from polydev.host_setup.inventory_values import HostData
from tests.netns import SmallHost, small_host

SITE = HostData(slots=12)


@dataclass(frozen=True)
class Edit:
    """A manual command, the difference reported for it, and whether that opens the network."""

    command: str
    text: str
    opens: bool = False


def inside(slot: int, command: str) -> str:
    return f"ip netns exec slot-{slot} {command}"


EDITS = (
    # The bridge
    Edit(
        "ip link set br-vm type bridge group_fwd_mask 8",
        "bridge: br-vm group_fwd_mask: 0x8 instead of 0",
        opens=True,
    ),
    Edit(
        "ip link add stranger type veth peer name other && ip link set stranger master br-vm up",
        "bridge: port stranger: there instead of missing",
        opens=True,
    ),
    Edit(
        "sysctl -q -w net.ipv4.ip_forward=0", "kernel: settings net.ipv4.ip_forward: 0 instead of 1"
    ),
    Edit(
        "sysctl -q -w net.ipv4.conf.br-vm.proxy_arp_pvlan=1",
        "bridge: settings net.ipv4.conf.br-vm.proxy_arp_pvlan: 1 instead of 0",
        opens=True,
    ),
    Edit(
        "sysctl -q -w net.ipv4.conf.br-vm.forwarding=0",
        "bridge: settings net.ipv4.conf.br-vm.forwarding: 0 instead of 1",
    ),
    # As after an MTU too small for IPv6 and back. networkd leaves such an address where it is.
    Edit(
        "ip address add fe80::5/64 dev br-vm && ip address add 10.9.8.7/32 dev br-vm",
        "bridge: br-vm addresses: unexpected: 10.9.8.7/32, fe80::5/64",
        opens=True,
    ),
    Edit(
        "ip route add 192.168.100.7/32 dev lo",
        "bridge: routes to 192.168.100.0/24: unexpected: 192.168.100.7 dev lo",
        opens=True,
    ),
    Edit(
        "sysctl -q -w net.ipv4.conf.all.proxy_arp=1",
        "bridge: settings net.ipv4.conf.all.proxy_arp: 1 instead of 0",
        opens=True,
    ),
    Edit("ip link set br-vm mtu 1280", "bridge: br-vm mtu: 1280 instead of 1500"),
    Edit(
        "ip neighbour add 192.168.100.4 lladdr 02:00:00:00:00:99 dev br-vm nud permanent",
        "bridge: neighbours permanent: unexpected: "
        "192.168.100.4 lladdr 02:00:00:00:00:99 dev br-vm",
        opens=True,
    ),
    Edit(
        "bridge fdb add 02:00:c0:a8:64:04 dev vm-3 master static",
        "bridge: br-vm static stations: unexpected: 02:00:c0:a8:64:04 dev vm-3",
        opens=True,
    ),
    Edit(
        "ip rule add to 192.168.100.0/25 priority 90 unreachable && "
        "ip route add default dev lo table 77 && ip rule add priority 91 lookup 77 && "
        "ip rule add from 192.168.100.3 priority 92 lookup 77",
        "bridge: routes policy: unexpected: 90: unreachable dst 192.168.100.0 dstlen 25, "
        "91: 77, 92: 77 src 192.168.100.3",
        opens=True,
    ),
    Edit(
        "ip -6 rule add iif br-vm priority 91 lookup 77 && "
        "ip -6 rule add to fd00::/8 oif br-vm priority 92 prohibit",
        "bridge: routes IPv6 policy: unexpected: "
        "91: 77 iif br-vm, 92: prohibit dst fd00:: dstlen 8 oif br-vm",
        opens=True,
    ),
    # The firewall
    Edit(
        "nft add rule inet polydev from_vm_to_host tcp dport 22 accept",
        "firewall: nftables rules: unexpected: tcp dport 22 accept",
        opens=True,
    ),
    # Ports of slots
    Edit(
        "bridge link set dev vm-2 isolated off",
        "slot-2: vm-2 isolated: off instead of on",
        opens=True,
    ),
    Edit("bridge link set dev vm-2 learning off", "slot-2: vm-2 learning: off instead of on"),
    Edit("bridge link set dev vm-2 flood off", "slot-2: vm-2 flood: off instead of on"),
    Edit("bridge link set dev vm-2 mcast_flood off", "slot-2: vm-2 mcast_flood: off instead of on"),
    Edit(
        "bridge link set dev vm-2 neigh_suppress on",
        "slot-2: vm-2 neigh_suppress: on instead of off",
        opens=True,
    ),
    Edit(
        "bridge link set dev vm-2 hairpin on", "slot-2: vm-2 hairpin: on instead of off", opens=True
    ),
    Edit("ip link set vm-6 mtu 1400", "slot-6: vm-6 mtu: 1400 instead of 1500"),
    Edit("ip link set vm-5 down", "slot-5: vm-5 state: down instead of up"),
    Edit("ip link set vm-7 nomaster", "slot-7: vm-7 bridge: none instead of br-vm", opens=True),
    Edit("bridge link set dev vm-8 state 0", "slot-8: vm-8 state: up but disabled instead of up"),
    # Inside slots
    Edit(
        inside(3, "nft flush ruleset"),
        "slot-3: nftables rules: missing: table ip slot {, chain input {",
        opens=True,
    ),
    Edit(inside(4, "ip link set tap0 down"), "slot-4: tap0 state: down instead of up"),
    Edit(
        inside(6, "sysctl -q -w net.ipv4.ip_forward=0"),
        "slot-6: settings net.ipv4.ip_forward: 0 instead of 1",
    ),
    Edit(
        inside(7, "sysctl -q -w net.ipv4.conf.tap0.forwarding=0"),
        "slot-7: settings net.ipv4.conf.tap0.forwarding: 0 instead of 1",
    ),
    Edit(
        inside(8, "sysctl -q -w net.ipv6.conf.uplink.disable_ipv6=0"),
        "slot-8: settings net.ipv6.conf.uplink.disable_ipv6: 0 instead of 1",
        opens=True,
    ),
    Edit(
        inside(8, "sysctl -q -w net.ipv6.conf.tap0.accept_ra=2"),
        "slot-8: settings net.ipv6.conf.tap0.accept_ra: 2 instead of 0",
        opens=True,
    ),
    Edit(
        inside(9, "ip address add 10.1.2.3/32 dev uplink"),
        "slot-9: uplink addresses: unexpected: 10.1.2.3/32",
        opens=True,
    ),
    Edit(
        inside(9, "ip link set uplink address 02:00:00:00:00:01"),
        "slot-9: uplink address: 02:00:00:00:00:01 instead of 02:00:c0:a8:64:09",
    ),
    Edit(
        inside(10, "ip route replace default via 192.168.100.9"),
        "slot-10: routes of the slot: unexpected: default via 192.168.100.9 dev uplink; "
        "missing: default via 192.168.100.1 dev uplink",
        opens=True,
    ),
    Edit(
        inside(10, "ip rule add to 8.8.8.8 lookup 7"),
        "slot-10: routes policy: unexpected: 32765: 7 dst 8.8.8.8",
        opens=True,
    ),
    Edit(
        inside(10, "ip -6 rule add not fwmark 7 lookup 7"),
        "slot-10: routes IPv6 policy: unexpected: 32765: 7 fwmark 0x7 not None",
        opens=True,
    ),
    Edit(
        inside(11, "ip link add other type veth peer name another")
        + " && "
        + inside(11, "ip link set other up"),
        "slot-11: interface other: there instead of missing",
        opens=True,
    ),
    Edit(
        inside(12, "nft add table inet more"),
        "slot-12: nftables rules: unexpected: table inet more {",
        opens=True,
    ),
    Edit(
        inside(12, "sh -c 'ip address flush dev tap0; ip address add 172.16.0.1/24 dev tap0'"),
        "slot-12: tap0 addresses: 172.16.0.1/24 instead of 172.16.0.1/30",
        opens=True,
    ),
    Edit(
        inside(12, "ip link set uplink mtu 1300") + " && " + inside(11, "ip link set tap0 mtu 900"),
        "slot-12: uplink mtu: 1300 instead of 1500",
    ),
    Edit(
        inside(13, "ip neighbour add 192.168.100.1 lladdr 02:00:00:00:00:9a dev uplink"),
        "slot-13: neighbours permanent: unexpected: "
        "192.168.100.1 lladdr 02:00:00:00:00:9a dev uplink",
        opens=True,
    ),
    Edit(
        inside(13, "ip link set tap0 address 02:00:00:00:00:9c"),
        "slot-13: tap0 address: 02:00:00:00:00:9c instead of 52:54:00:16:00:01",
    ),
    Edit(
        inside(13, "ip route delete default"), "slot-13: routes of the slot: missing: default via"
    ),
)
# Differences that the kernel itself makes after some of the edits.
CONSEQUENCES = (
    "slot-4: routes of the slot: missing: 172.16.0.0/30 dev tap0",
    "slot-6: settings net.ipv4.conf.",
    "slot-8: uplink addresses: unexpected: fe80::",
    "slot-11: tap0 mtu: 900 instead of 1500",
    "slot-12: routes of the slot: unexpected: 172.16.0.0/24 dev tap0",
)

# These need a new slot, which a deployment does not make while the slot's VM runs.
BROKEN = {
    2: ("ip netns delete slot-2", ("slot-2: namespace: missing instead of there",)),
    3: (
        inside(3, "ip link delete tap0")
        + " && "
        + inside(3, "ip tuntap add dev tap0 mode tap")
        + " && "
        + inside(3, "sh -c 'ip address add 172.16.0.1/30 dev tap0; ip link set tap0 up'")
        + " && "
        + inside(3, "ip link set tap0 address 52:54:00:16:00:01"),
        ("slot-3: tap0 user: everybody instead of polydev-vm-3",),
    ),
    4: (
        inside(4, "ip link delete tap0"),
        (
            "slot-4: tap0: missing instead of there",
            "slot-4: routes of the slot: missing: 172.16.0.0/30 dev tap0",
        ),
    ),
    5: (
        "ip link delete vm-5",
        (
            "slot-5: vm-5: missing instead of there",
            "slot-5: uplink: missing instead of there",
            "slot-5: routes of the slot: missing: 192.168.100.0/24 dev uplink src 192.168.100.5, "
            "default via",
        ),
    ),
}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallHost]:
    with small_host(tmp_path_factory.mktemp("host"), SITE) as made:
        yield made


def repair_bridge(host: SmallHost) -> None:
    """Repair the bridge as a deployment does; addresses and routes are networkd's part."""
    said = host.tell("network", "mend")
    assert "error" not in said, said
    host.bring_addresses()


@pytest.fixture(scope="module")
def said(host: SmallHost) -> Iterator[list[dict[str, object]]]:
    """Yield the reported differences after all edits together."""
    assert host.differences() == []
    host.inside("set -e\n" + "\n".join(each.command for each in EDITS))
    said = host.tell("network", "check")["differences"]
    repair_bridge(host)
    host.inside("nft -f /etc/polydev/firewall.nft; sysctl -q -w net.ipv4.ip_forward=1")
    host.inside("ip route flush table 77")
    yield said
    host.inside("ip link delete stranger")


class TestEdits:
    @pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.text)
    def test_edit_is_reported(self, said: list[dict[str, object]], edit: Edit) -> None:
        (found,) = [each for each in said if str(each["text"]).startswith(edit.text)]
        assert found["opens"] is edit.opens
        assert found["diff"]

    def test_only_edits_and_consequences_are_reported(self, said: list[dict[str, object]]) -> None:
        texts = [str(each["text"]) for each in said]
        expected = (*(edit.text for edit in EDITS), *CONSEQUENCES)
        assert [each for each in texts if not each.startswith(expected)] == []

    def test_slot_mend_repairs_each_edited_slot_in_place(
        self, host: SmallHost, said: list[dict[str, object]]
    ) -> None:
        slots = sorted({str(each["part"]) for each in said if str(each["part"])[:5] == "slot-"})
        before = host.inside("stat -Lc %i /run/netns/slot-*")
        for name in slots:
            number = int(name.removeprefix("slot-"))
            assert host.tell("slot", "mend", number) == {"mended": number}
        assert host.differences() == []
        assert host.inside("stat -Lc %i /run/netns/slot-*") == before


class TestBrokenSlot:
    def test_broken_slot_is_reported_and_slot_mend_refused(self, host: SmallHost) -> None:
        host.inside("set -e\n" + "\n".join(command for command, _ in BROKEN.values()))
        said = host.differences()
        for _, texts in BROKEN.values():
            for text in texts:
                (found,) = [each for each in said if each.startswith(text)]
                said.remove(found)
        assert said == []
        refused = host.tell("slot", "mend", 3)
        assert refused["error"] == "slot-broken"
        assert "tap0 user" in refused["message"]
        for number in BROKEN:
            host.tell("slot", "up", number)
        assert host.differences() == []

    def test_bridge_that_is_down_is_reported_and_repaired(self, host: SmallHost) -> None:
        host.inside("ip link set br-vm down; ip link set br-vm type bridge stp_state 1")
        assert host.differences() == [
            "bridge: br-vm state: down instead of up",
            "bridge: br-vm stp_state: 1 instead of 0",
            "bridge: routes to 192.168.100.0/24: missing: "
            "192.168.100.0/24 dev br-vm src 192.168.100.1",
        ]
        repair_bridge(host)
        assert host.differences() == []

    def test_removed_bridge_is_reported_and_repaired(self, host: SmallHost) -> None:
        host.inside("ip link delete br-vm")
        said = host.differences()
        assert "bridge: br-vm: missing instead of there" in said
        assert "slot-13: vm-13 bridge: none instead of br-vm" in said
        repair_bridge(host)
        for number in SITE.slot_numbers:
            host.tell("slot", "mend", number)
        assert host.differences() == []


class TestPolicy:
    """Rules of routing policy are reported only if they affect packets of VMs."""

    @pytest.mark.parametrize(
        "rules",
        [
            "rule add fwmark 0x80000 priority 91 lookup 77",  # as VPNs have them
            "rule add priority 91 lookup 78",  # where nothing leads to VMs
            "rule add from 10.9.0.0/16 priority 91 lookup 77",
            "rule add iif lo to 10.9.0.0/16 priority 91 lookup 77",
            "rule add oif stranger priority 91 lookup 77",
            "rule add priority 90 lookup main suppress_prefixlength 0\n"
            "rule add not fwmark 0xca6c priority 91 lookup 77",
        ],
    )
    def test_policy_rules_of_others_are_kept(self, host: SmallHost, rules: str) -> None:
        with policy_rules(host, rules):
            assert host.differences() == []
            repair_bridge(host)
            assert host.inside("ip rule show priority 91") != ""

    @pytest.mark.parametrize(
        "rule",
        [
            "not fwmark 0xca6c priority 91 lookup 77",
            "iif br-vm priority 91 lookup 77",
            "to 192.168.100.5 priority 91 prohibit",
            "iif lo to 192.168.0.0/16 priority 91 lookup 77",
        ],
    )
    def test_policy_rule_that_affects_vms_is_removed(self, host: SmallHost, rule: str) -> None:
        with policy_rules(host, f"rule add {rule}"):
            (said,) = host.differences()
            assert said.startswith("bridge: routes policy: unexpected: 91: ")
            repair_bridge(host)
            assert host.differences() == []

    def test_ipv6_policy_rules_of_others_are_kept(self, host: SmallHost) -> None:
        host.inside("ip -6 rule add not fwmark 0xca6c priority 91 lookup 77")
        assert host.differences() == []
        repair_bridge(host)
        assert host.inside("ip -6 rule show priority 91") != ""
        host.inside("ip -6 rule delete priority 91")

    def test_missing_rule_of_main_table_is_restored(self, host: SmallHost) -> None:
        host.inside("ip rule delete priority 32766")
        assert host.differences() == ["bridge: routes policy: missing: main"]
        repair_bridge(host)
        assert host.differences() == []


@contextmanager
def policy_rules(host: SmallHost, rules: str) -> Iterator[None]:
    """Add these rules, and a table 77 with another default route, for the block."""
    host.inside(f"printf 'route add default dev lo table 77\n{rules}\n' | ip -batch -")
    try:
        yield
    finally:
        host.inside("ip route flush table 77; ip rule delete priority 90", check=False)
        host.inside("ip rule delete priority 91", check=False)


class TestOlderSlot:
    def test_only_port_of_older_slot_is_compared(self, host: SmallHost) -> None:
        """A slot made by an older deployment keeps its network, but its port must be isolated."""
        stamp = "/run/polydev/config/microvm-slot@2.service"
        host.inside(f"echo older >{stamp}; {inside(2, 'nft flush ruleset')}")
        assert host.differences() == []
        host.inside("bridge link set dev vm-2 isolated off")
        assert host.differences() == ["slot-2: vm-2 isolated: off instead of on"]
        assert host.tell("slot", "mend", 2) == {"mended": 2}
        assert host.differences() == []
        assert host.inside(inside(2, "nft list ruleset")) == ""
        host.inside(f"rm {stamp}")
        assert host.tell("slot", "mend", 2) == {"mended": 2}
        assert host.differences() == []

    def test_port_of_a_slot_beyond_the_last_is_not_foreign(self, host: SmallHost) -> None:
        fewer = json.loads(host.inside("cat /etc/polydev/host.json"))
        fewer["slots"] = fewer["slots"][:-1]
        path = host.tool.parent / "fewer.json"
        path.write_text(json.dumps(fewer))
        assert host.tell("network", "check", "--host", path)["differences"] == []
        # The given file counts, not the host's own one.
        more = {**fewer, "slots": [*SITE.slot_numbers, 14]}
        path.write_text(json.dumps(more))
        (found,) = host.tell("network", "check", "--host", path)["differences"]
        assert found["text"] == "slot-14: namespace: missing instead of there"


class TestNetworkVerbs:
    def test_unreadable_network_is_an_error(self, host: SmallHost) -> None:
        words = f"PATH=/nowhere /usr/bin/python3 -I {shlex.quote(str(host.tool))} network check"
        answer = json.loads(host.inside(words, check=False))
        assert answer["error"] == "network-unread"
        assert "cannot" in answer["message"]

    def test_network_watch_writes_world_readable_report(self, host: SmallHost) -> None:
        tool = f"/usr/bin/python3 -I {shlex.quote(str(host.tool))}"
        report = "/run/polydev/network.json"
        said = host.inside(
            f"bridge link set dev vm-2 isolated off; {tool} network watch --seconds 60 & "
            f"until test -e {report}; do sleep 0.05; done; kill $!; stat -c %a {report}; "
            f"cat {report}; bridge link set dev vm-2 isolated on"
        )
        mode, text = said.split("\n", 1)
        assert mode == "644"
        (found,) = json.loads(text)["differences"]
        assert (found["part"], found["opens"]) == ("slot-2", True)

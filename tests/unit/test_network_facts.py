"""Parsing of `ip` for a network as declared, and for one that was changed by hand. Pure.

tests/integration/test_network_state.py makes the same changes to a kernel.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from ipaddress import IPv4Network
from typing import Any

import pytest

from polydev.host_setup.accounts import host_json
from polydev.host_setup.inventory_values import HostData
from polydev.hosttool import bridge_facts, ip_output, network_facts, slot_facts
from polydev.hosttool.network_facts import Difference, KernelState
from polydev.hosttool.slot_network import PORT_FLAGS, settings_of, slot_of

HOST: Any = json.loads(host_json(HostData(slots=12), []))
SLOT = slot_of(2, HOST)
UP = ["BROADCAST", "UP", "LOWER_UP"]
MAIN_RULES = [
    {"priority": 0, "src": "all", "table": "local"},
    {"priority": 32766, "src": "all", "table": "main"},
    {"priority": 32767, "src": "all", "table": "default"},
]
RULES6 = [{"priority": 0, "table": "local"}, {"priority": 32766, "table": "main"}]
RULES = ("table inet guest {", "drop", "}")
BRIDGE, NETWORK = "br-vm", "192.168.100.0/24"


def bridge_link() -> dict[str, Any]:
    data: dict[str, Any] = {"stp_state": 0, "vlan_filtering": 0, "group_fwd_mask": "0"}
    return {
        "ifname": BRIDGE,
        "flags": UP,
        "mtu": 1500,
        "address": "02:00:00:00:00:01",
        "linkinfo": {"info_kind": "bridge", "info_data": data},
        "addr_info": [{"local": "192.168.100.1", "prefixlen": 24}],
    }


def port_link() -> dict[str, Any]:
    flags = {name: value == "on" for name, value in PORT_FLAGS.items()}
    return {
        "ifname": "vm-2",
        "master": BRIDGE,
        "flags": UP,
        "operstate": "UP",
        "mtu": 1500,
        "address": "02:00:00:00:00:02",
        "linkinfo": {"info_kind": "veth", "info_slave_data": {**flags, "state": "forwarding"}},
    }


def of_host() -> KernelState:
    return KernelState(
        links=[{"ifname": "eth0", "flags": UP, "mtu": 1500}, bridge_link(), port_link()],
        routes=[
            {"dst": "default", "gateway": "10.0.0.1", "dev": "eth0"},
            {"dst": NETWORK, "dev": BRIDGE, "prefsrc": "192.168.100.1", "protocol": "kernel"},
            {"type": "unreachable", "dst": NETWORK, "metric": bridge_facts.WORST_METRIC},
            {"type": "local", "dst": "192.168.100.1", "dev": BRIDGE, "protocol": "kernel"},
            {"dst": "fe80::/64", "dev": "eth0"},
        ],
        policy=deepcopy(MAIN_RULES),
        policy6=deepcopy(RULES6),
        neighbours=[{"dst": "10.0.0.1", "lladdr": "02::1", "dev": "eth0"}],
        settings={**bridge_facts.bridge_settings(BRIDGE), network_facts.FORWARDING: "1"},
        rules=(),
        stations=[
            {"mac": "02:00:00:00:00:02", "ifname": "vm-2", "state": "permanent", "master": BRIDGE},
            {"mac": "33:33:00:00:00:01", "ifname": "eth0", "state": "permanent"},
            {"mac": "02:00:00:00:00:09", "ifname": "vm-2", "master": BRIDGE},
        ],
    )


def of_slot() -> KernelState:
    def address(local: str, prefix: int) -> list[dict[str, Any]]:
        return [{"local": local, "prefixlen": prefix}]

    tap = {"info_kind": "tun", "info_data": {"type": "tap", "user": SLOT.user}}
    return KernelState(
        links=[
            {"ifname": "lo", "flags": ["LOOPBACK", "UP"], "mtu": 65536},
            {"ifname": "sit0", "flags": [], "mtu": 1480},
            {
                "ifname": "tap0",
                "flags": UP,
                "mtu": 1500,
                "address": "52:54:00:16:00:01",
                "linkinfo": tap,
                "addr_info": address("172.16.0.1", 30),
            },
            {
                "ifname": "uplink",
                "flags": UP,
                "mtu": 1500,
                "address": SLOT.hardware_address,
                "linkinfo": {"info_kind": "veth"},
                "addr_info": address(SLOT.address, 24),
            },
        ],
        routes=[
            {"dst": "default", "gateway": SLOT.gateway, "dev": "uplink"},
            {"dst": "172.16.0.0/30", "dev": "tap0", "prefsrc": "172.16.0.1"},
            {"dst": NETWORK, "dev": "uplink", "prefsrc": SLOT.address},
            {"type": "local", "dst": "172.16.0.1", "dev": "tap0", "protocol": "kernel"},
            {"type": "broadcast", "dst": "172.16.0.3", "dev": "tap0", "protocol": "kernel"},
            {"dst": "fe80::/64", "dev": "tap0"},
        ],
        policy=deepcopy(MAIN_RULES),
        policy6=deepcopy(RULES6),
        neighbours=[],
        settings=dict(settings_of(SLOT)),
        rules=RULES,
        stations=[],
    )


def found_on_host(live: KernelState) -> list[Difference]:
    declared = bridge_facts.declared_bridge(HOST)
    return network_facts.differences(
        "bridge", declared, bridge_facts.live_bridge(HOST, live, [2, 13])
    )


def found_in_slot(live: KernelState, links: list[dict[str, Any]] | None = None) -> list[Difference]:
    links = of_host().links if links is None else links
    facts = {**slot_facts.live_port(SLOT, links), **slot_facts.live_slot(live)}
    return network_facts.differences("slot-2", slot_facts.declared_slot(SLOT, RULES), facts)


def test_no_differences_for_a_network_as_declared() -> None:
    assert found_on_host(of_host()) == []
    assert found_in_slot(of_slot()) == []
    assert (
        network_facts.differences(
            "kernel", bridge_facts.declared_kernel(), bridge_facts.live_kernel(of_host().settings)
        )
        == []
    )


def link(live: KernelState, name: str) -> dict[str, Any]:
    return next(each for each in live.links if each["ifname"] == name)


Change = Callable[[KernelState], object]
HOSTS: list[tuple[str, bool, Change]] = [
    ("br-vm state: down instead of up", False, lambda it: link(it, BRIDGE).update(flags=[])),
    ("br-vm: missing instead of there", False, lambda it: it.links.pop(1)),
    ("br-vm mtu: 1400 instead of 1500", False, lambda it: link(it, BRIDGE).update(mtu=1400)),
    (
        "br-vm stp_state: 1 instead of 0",
        False,
        lambda it: link(it, BRIDGE)["linkinfo"]["info_data"].update(stp_state=1),
    ),
    (
        "br-vm vlan_filtering: 1 instead of 0",
        True,
        lambda it: link(it, BRIDGE)["linkinfo"]["info_data"].update(vlan_filtering=1),
    ),
    (
        "br-vm kind: none instead of bridge",
        True,
        lambda it: link(it, BRIDGE)["linkinfo"].update(info_kind="none"),
    ),
    (
        "br-vm addresses: unexpected: 10.9.8.7/32",
        True,
        lambda it: link(it, BRIDGE)["addr_info"].append({"local": "10.9.8.7", "prefixlen": 32}),
    ),
    (
        "port stranger: there instead of missing",
        True,
        lambda it: it.links.append({**port_link(), "ifname": "stranger"}),
    ),
    (
        "routes to 192.168.100.0/24: unexpected: 192.168.100.7 dev lo",
        True,
        lambda it: it.routes.append({"dst": "192.168.100.7", "dev": "lo"}),
    ),
    (
        "routes to 192.168.100.0/24: unexpected: local 192.168.100.7 dev lo",
        True,
        lambda it: it.routes.append(
            {"type": "local", "dst": "192.168.100.7", "dev": "lo", "protocol": "boot"}
        ),
    ),
    (
        "routes to 192.168.100.0/24: missing: unreachable 192.168.100.0/24 metric 4294967295",
        False,
        lambda it: it.routes.pop(2),
    ),
    ("routes policy: missing: main", False, lambda it: it.policy.pop(1)),
    (
        "routes policy: unexpected: 9: unreachable dst 192.168.100.0 dstlen 25",
        True,
        lambda it: it.policy.insert(
            1,
            {
                "priority": 9,
                "src": "all",
                "action": "unreachable",
                "dst": "192.168.100.0",
                "dstlen": 25,
            },
        ),
    ),
    (
        "routes IPv6 policy: unexpected: 9: 77 iif br-vm",
        True,
        lambda it: it.policy6.append({"priority": 9, "table": "77", "iif": BRIDGE}),
    ),
    (
        "neighbours permanent: unexpected: 192.168.100.4 lladdr 02::9 dev br-vm",
        True,
        lambda it: it.neighbours.append({"dst": "192.168.100.4", "lladdr": "02::9", "dev": BRIDGE}),
    ),
    (
        "br-vm static stations: unexpected: 02::9 dev vm-2",
        True,
        lambda it: it.stations.append({"mac": "02::9", "ifname": "vm-2", "state": "static"}),
    ),
    (
        "br-vm static stations: unexpected: 02::9 dev vm-2",
        True,
        lambda it: it.stations.append(
            {"mac": "02::9", "ifname": "vm-2", "state": "permanent", "master": BRIDGE}
        ),
    ),
    (
        "settings net.ipv4.conf.all.proxy_arp: 1 instead of 0",
        True,
        lambda it: it.settings.update({"net.ipv4.conf.all.proxy_arp": "1"}),
    ),
    (
        "settings net.ipv4.conf.br-vm.forwarding: 0 instead of 1",
        False,
        lambda it: it.settings.update({"net.ipv4.conf.br-vm.forwarding": "0"}),
    ),
]
SLOTS: list[tuple[str, bool, Change]] = [
    ("lo state: down instead of up", False, lambda it: link(it, "lo").update(flags=[])),
    (
        "tap0 user: everybody instead of polydev-vm-2",
        True,
        lambda it: link(it, "tap0")["linkinfo"]["info_data"].pop("user"),
    ),
    (
        "tap0 address: 02::9 instead of 52:54:00:16:00:01",
        False,
        lambda it: link(it, "tap0").update(address="02::9"),
    ),
    (
        "tap0 kind: tun instead of tap",
        True,
        lambda it: link(it, "tap0")["linkinfo"]["info_data"].pop("type"),
    ),
    (
        "uplink addresses: 192.168.100.3/24 instead of 192.168.100.2/24",
        True,
        lambda it: link(it, "uplink").update(
            addr_info=[{"local": "192.168.100.3", "prefixlen": 24}]
        ),
    ),
    (
        "interface other: there instead of missing",
        True,
        lambda it: it.links.append({"ifname": "other", "flags": ["UP"], "mtu": 1500}),
    ),
    (
        "routes of the slot: unexpected: 10.0.0.0/8 via 172.16.0.2 dev tap0 metric 7 table 9",
        True,
        lambda it: it.routes.append(
            {
                "dst": "10.0.0.0/8",
                "gateway": "172.16.0.2",
                "dev": "tap0",
                "metric": 7,
                "table": "9",
            }
        ),
    ),
    (
        "routes policy: unexpected: 9: 77",
        True,
        lambda it: it.policy.insert(1, {"priority": 9, "src": "all", "table": "77"}),
    ),
    (
        "routes IPv6 policy: unexpected: 9: 77",
        True,
        lambda it: it.policy6.append({"priority": 9, "table": "77"}),
    ),
    (
        "neighbours permanent: unexpected: 172.16.0.9 lladdr 02::9 dev tap0",
        True,
        lambda it: it.neighbours.append({"dst": "172.16.0.9", "lladdr": "02::9", "dev": "tap0"}),
    ),
    (
        "settings net.ipv4.ip_forward: 0 instead of 1",
        False,
        lambda it: it.settings.update({"net.ipv4.ip_forward": "0"}),
    ),
]


@pytest.mark.parametrize(
    ("text", "opens", "change"), [pytest.param(*row, id=row[0]) for row in HOSTS]
)
def test_each_bridge_change_is_found(text: str, opens: bool, change: Change) -> None:
    live = of_host()
    change(live)
    assert [(each.text, each.opens) for each in found_on_host(live)] == [(f"bridge: {text}", opens)]


@pytest.mark.parametrize(
    ("text", "opens", "change"), [pytest.param(*row, id=row[0]) for row in SLOTS]
)
def test_each_slot_change_is_found(text: str, opens: bool, change: Change) -> None:
    live = of_slot()
    change(live)
    assert [(each.text, each.opens) for each in found_in_slot(live)] == [(f"slot-2: {text}", opens)]


def test_any_other_slot_rules_count_as_open() -> None:
    for rules in ((), RULES[:1], (*RULES, "accept")):
        (found,) = found_in_slot(replace(of_slot(), rules=rules))
        assert (found.what, found.opens) == ("nftables rules", True)


@pytest.mark.parametrize("flag", PORT_FLAGS)
def test_changed_port_flag_is_found(flag: str) -> None:
    host = of_host()
    data = link(host, "vm-2")["linkinfo"]["info_slave_data"]
    data[flag] = not data[flag]
    (found,) = found_in_slot(of_slot(), host.links)
    words = {"on": "off", "off": "on"}
    wanted = PORT_FLAGS[flag]
    assert found.text == f"slot-2: vm-2 {flag}: {words[wanted]} instead of {wanted}"
    assert found.opens == (flag not in network_facts.ONLY_CLOSING)
    del data[flag]
    if wanted == "off":
        assert found_in_slot(of_slot(), host.links) == [], "a kernel that does not know it"


@pytest.mark.parametrize(
    ("state", "flags", "operstate", "bridge_flags", "said"),
    [
        ("disabled", UP, "UP", UP, ["up but disabled"]),
        ("blocking", UP, "UP", UP, ["up but blocking"]),
        ("disabled", ["UP"], "LOWERLAYERDOWN", UP, []),  # without a carrier
        ("disabled", UP, "LOWERLAYERDOWN", UP, []),  # the kernel has yet to process its carrier
        ("disabled", UP, "UP", [], []),  # the bridge has its own difference
        ("learning", UP, "UP", UP, []),
        ("forwarding", [], "DOWN", UP, ["down"]),
    ],
)
def test_port_that_is_up_but_not_forwarding_is_found(
    state: str, flags: list[str], operstate: str, bridge_flags: list[str], said: list[str]
) -> None:
    host = of_host()
    link(host, "vm-2")["linkinfo"]["info_slave_data"]["state"] = state
    link(host, "vm-2").update(flags=flags, operstate=operstate)
    link(host, BRIDGE)["flags"] = bridge_flags
    found = [line for each in found_in_slot(of_slot(), host.links) for line in each.found]
    assert found == said


@pytest.mark.parametrize(
    ("mtu", "of_ports", "said"),
    [
        (1400, [1400, 1500], "1500"),
        (1400, [1500], "1400"),
        (1500, [1500], "1500"),
        (9000, [], "9000"),
    ],
)
def test_bridge_mtu_follows_its_smallest_port(mtu: int, of_ports: list[int], said: str) -> None:
    bridge = {**bridge_link(), "mtu": mtu}
    ports = [{**port_link(), "mtu": each} for each in of_ports]
    other = {"ifname": "eth0", "mtu": mtu, "flags": UP}
    assert bridge_facts._mtu_of_bridge(bridge, [bridge, other, *ports]) == said


@pytest.mark.parametrize(
    ("rule", "is_about"),
    [
        ({"src": "all"}, True),
        ({"src": "192.168.100.3"}, True),
        ({"src": "192.168.100.0", "srclen": 25}, True),
        ({"src": "192.168.0.0", "srclen": 16}, True),
        ({"src": "192.168.101.0", "srclen": 24}, False),
        ({"src": "all", "dst": "10.0.0.0", "dstlen": 8}, False),
        ({"src": "all", "iif": BRIDGE}, True),
        ({"src": "all", "oif": "lo"}, True),
        ({"src": "all", "iif": "eth0"}, False),
        ({"src": "all", "fwmark": "0x1"}, False),
        ({"src": "all", "l3mdev": None}, False),
        ({"not": None, "src": "10.0.0.0", "srclen": 8}, True),
    ],
)
def test_routing_rules_about_vm_packets(rule: dict[str, Any], is_about: bool) -> None:
    assert bridge_facts._is_about(rule, IPv4Network(NETWORK), BRIDGE) is is_about


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (
            {"priority": 9, "src": "all", "table": "77"},
            "priority 9 from all table 77",
        ),
        (
            {"not": None, "priority": 9, "src": "10.0.0.0", "srclen": 8, "dst": "10.1.1.1"},
            "not priority 9 from 10.0.0.0/8 to 10.1.1.1",
        ),
        (
            {"priority": 9, "iif": "a", "oif": "b", "fwmark": "0x1", "table": "7"},
            "priority 9 iif a oif b fwmark 0x1 table 7",
        ),
    ],
)
def test_rule_words_match_ip_rule_arguments(rule: dict[str, Any], words: str) -> None:
    assert ip_output.rule_words(rule) == words


def test_rule_to_an_unrelated_table_is_ignored() -> None:
    live = of_host()
    live.policy.insert(1, {"priority": 9, "src": "all", "table": "77"})
    assert bridge_facts.rules_before_main(HOST, live) == []
    live.routes.append({"dst": "10.0.0.0/8", "dev": "eth0", "table": "77"})
    live.routes.append({"dst": "fd00::/8", "dev": "eth0", "table": "77"})
    assert bridge_facts.rules_before_main(HOST, live) == []
    live.routes.append({"dst": "default", "dev": "eth0", "table": "77"})
    assert bridge_facts.rules_before_main(HOST, live) == [live.policy[1]]
    # A rule after the main table has no effect.
    live.policy.append(live.policy.pop(1))
    assert bridge_facts.rules_before_main(HOST, live) == []


def test_foreign_ports_and_links_are_listed() -> None:
    facts: Any = {"port x": {}, "interface y": {}, BRIDGE: {}}
    assert bridge_facts.foreign_ports(facts) == ["x"]
    assert slot_facts.foreign_links(facts) == ["y"]


def test_long_difference_is_shortened_as_text_but_not_in_the_diff() -> None:
    lines = tuple(f"rule {number}" for number in range(5))
    found = Difference("slot-2", "nftables rules", (*lines, "}"), ("drop", "}"), opens=True)
    assert found.text == (
        "slot-2: nftables rules: unexpected: rule 0, rule 1, rule 2 and 2 more; missing: drop"
    )
    assert found.diff == [
        *(f"- slot-2: nftables rules: {line}" for line in lines),
        "+ slot-2: nftables rules: drop",
    ]
    assert found.as_dict() == {
        "part": "slot-2",
        "what": "nftables rules",
        "opens": True,
        "text": found.text,
        "diff": found.diff,
    }

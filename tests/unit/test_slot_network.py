"""A slot's commands and rules, as values."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from polydev.controller.machines import template_maker
from polydev.host_layout import GATEWAY_MAC
from polydev.hosttool import slot_network
from polydev.hosttool.errors import HostError
from polydev.hosttool.slot_network import (
    inside_of,
    port_of,
    read_host,
    rules_of,
    settings_of,
    slot_commands,
    slot_of,
    veth_of,
)

HOST: dict[str, Any] = {
    "bridge": {"name": "br-vm", "address": "192.168.100.1/24"},
    "slots": [2, 3],
    "resolvers": ["8.8.8.8", "8.8.4.4"],
    "translatesNames": False,
}
PRIVATE = {"resolvers": ["10.0.0.53", "10.0.0.54"], "translatesNames": True}


def chain(rules: str, table: str, name: str) -> list[str]:
    body = rules.partition(f"table {table} {{\n")[2]
    found = re.search(rf"^\tchain {name} \{{\n(.*?)^\t\}}$", body, re.DOTALL | re.MULTILINE)
    assert found
    return [line.strip() for line in found[1].splitlines() if line.strip()]


def test_guest_network_is_the_same_for_template_and_clone() -> None:
    """A template boots in one network, its clones run in others."""
    assert slot_network.TAP == template_maker.TAP
    assert f"link set tap0 address {GATEWAY_MAC}" in inside_of(slot_of(2, HOST))


class TestSlot:
    def test_slot_names_and_addresses(self) -> None:
        slot = slot_of(3, HOST)
        assert (slot.namespace, slot.port) == ("slot-3", "vm-3")
        assert (slot.address, slot.gateway, slot.prefix) == ("192.168.100.3", "192.168.100.1", 24)

    def test_port_of_the_last_slot_fits_an_interface_name(self) -> None:
        host = HOST | {"slots": [251]}
        assert len(slot_of(251, host).port) <= 15

    @pytest.mark.parametrize(
        "host", [HOST, {}, {"slots": [9]}, HOST | {"bridge": None}, HOST | {"slots": None}]
    )
    def test_unknown_slot_is_refused(self, host: dict[str, Any]) -> None:
        with pytest.raises(HostError, match="no slot 9") as failure:
            slot_of(9, host)
        assert failure.value.code == "no-slot"

    @pytest.mark.parametrize(
        ("words", "resolver"),
        [
            ({}, None),
            (PRIVATE, "10.0.0.53"),
            ({"resolvers": None}, None),
            ({"resolvers": [], "translatesNames": True}, None),
        ],
    )
    def test_slot_resolver_is_the_first_private_one(
        self, words: dict[str, Any], resolver: str | None
    ) -> None:
        assert slot_of(2, HOST | words).resolver == resolver


class TestCommands:
    def test_firewall_is_loaded_before_any_interface_is_up(self) -> None:
        slot = slot_of(2, HOST)
        commands = slot_commands(slot)
        starts_up = [
            place
            for place, (argv, text) in enumerate(commands)
            if any(line.endswith(" up") for line in text.splitlines())
        ]
        inside = ["ip", "netns", "exec", "slot-2"]
        argvs = [argv for argv, _ in commands]
        rules = argvs.index([*inside, "nft", "-f", "-"])
        settings = next(at for at, argv in enumerate(argvs) if "sysctl" in argv)
        assert commands[rules][1] == f"flush ruleset\n{rules_of(slot)}"
        assert {f"{key}={value}" for key, value in settings_of(slot).items()} < set(argvs[settings])
        assert max(rules, settings) < min(starts_up)

    def test_ipv6_is_off_on_every_interface(self) -> None:
        settings = settings_of(slot_of(2, HOST))
        for interface in ("all", "default", "tap0", "uplink"):
            assert settings[f"net.ipv6.conf.{interface}.disable_ipv6"] == "1"
            assert settings[f"net.ipv6.conf.{interface}.accept_ra"] == "0"

    def test_redirects_and_source_routes_are_disabled(self) -> None:
        settings = settings_of(slot_of(2, HOST))
        for interface in ("all", "default", "tap0", "uplink"):
            for name in ("accept_redirects", "accept_source_route", "proxy_arp", "route_localnet"):
                assert settings[f"net.ipv4.conf.{interface}.{name}"] == "0"
            assert settings[f"net.ipv4.conf.{interface}.forwarding"] == "1"

    def test_ip_forward_is_set_first(self) -> None:
        assert next(iter(settings_of(slot_of(2, HOST)))) == "net.ipv4.ip_forward"

    def test_port_is_isolated_before_it_is_up(self) -> None:
        slot = slot_of(2, HOST)
        assert veth_of(slot).splitlines() == [
            "link add vm-2 type veth peer name uplink address 02:00:c0:a8:64:02 netns slot-2",
        ]
        down, master, mtu, flags, up = port_of(slot).splitlines()
        assert (down, up) == ("link set vm-2 down", "link set vm-2 up")
        assert master == "link set vm-2 master br-vm"
        assert mtu == "link set vm-2 mtu 1500"
        assert flags == (
            "link set vm-2 type bridge_slave isolated on hairpin off proxy_arp off "
            "proxy_arp_wifi off vlan_tunnel off neigh_suppress off mcast_to_unicast off guard off "
            "root_block off fastleave off locked off learning on flood on mcast_flood on "
            "bcast_flood on"
        )

    def test_namespace_has_address_route_and_tap(self) -> None:
        lines = inside_of(slot_of(2, HOST)).splitlines()
        assert "addr add 192.168.100.2/24 dev uplink" in lines
        assert "route add default via 192.168.100.1" in lines
        assert "addr add 172.16.0.1/30 dev tap0" in lines
        made = [text for _, text in slot_commands(slot_of(2, HOST))]
        tap = made.index("tuntap add dev tap0 mode tap user polydev-vm-2\n")
        assert tap < made.index(inside_of(slot_of(2, HOST)))


class TestRules:
    def test_packets_with_a_forged_source_are_dropped(self) -> None:
        rules = rules_of(slot_of(2, HOST))
        assert chain(rules, "ip slot", "forward")[:2] == [
            "type filter hook forward priority filter; policy drop;",
            'iifname "tap0" ip saddr != 172.16.0.2 drop',
        ]
        assert (
            chain(rules, "arp slot", "input")[1] == 'iifname "tap0" arp saddr ip != 172.16.0.2 drop'
        )

    def test_outgoing_packets_get_the_address_of_the_slot(self) -> None:
        rules = rules_of(slot_of(3, HOST))
        (_, line) = chain(rules, "ip slot", "from_guest")
        assert line == 'oifname "uplink" ip saddr 172.16.0.2 snat to 192.168.100.3'
        (hook, line) = chain(rules, "ip slot", "translated")
        assert hook.startswith("type filter hook postrouting priority srcnat + 10;")
        assert line == 'oifname "uplink" ip saddr != 192.168.100.3 drop'

    @pytest.mark.parametrize("name", ["input", "forward"])
    def test_invalid_packets_are_dropped_first(self, name: str) -> None:
        lines = chain(rules_of(slot_of(3, HOST)), "ip slot", name)
        invalid = lines.index("ct state invalid drop")
        assert invalid < lines.index("ct state established,related accept")

    @pytest.mark.parametrize("name", ["input", "forward", "output"])
    def test_ipv6_is_dropped(self, name: str) -> None:
        (hook,) = chain(rules_of(slot_of(3, HOST)), "ip6 slot", name)
        assert hook.endswith("policy drop;")

    def test_only_the_guest_ports_are_forwarded(self) -> None:
        rules = rules_of(slot_of(3, HOST))
        assert chain(rules, "ip slot", "to_guest")[1:] == [
            'iifname "uplink" ip daddr 192.168.100.3 tcp dport { 8080, 5901, 6080 } '
            "dnat to 172.16.0.2"
        ]
        assert 'iifname "uplink" oifname "tap0" ct status dnat accept' in rules

    def test_dns_is_redirected_to_a_private_resolver(self) -> None:
        lines = chain(rules_of(slot_of(2, HOST | PRIVATE)), "ip slot", "to_guest")
        assert lines[-2:] == [
            'iifname "tap0" udp dport 53 dnat to 10.0.0.53',
            'iifname "tap0" tcp dport 53 dnat to 10.0.0.53',
        ]

    def test_dns_is_not_redirected_without_a_private_resolver(self) -> None:
        assert "dport 53" not in rules_of(slot_of(2, HOST))

    def test_rules_have_balanced_braces(self) -> None:
        for host in (HOST, HOST | PRIVATE):
            rules = rules_of(slot_of(2, host))
            assert rules.count("{") == rules.count("}")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A host without slots; the list of commands that would run."""
    file = tmp_path / "host.json"
    file.write_text(json.dumps(HOST))
    namespaces = tmp_path / "netns"
    namespaces.mkdir()
    commands: list[str] = []

    def run(argv: list[str], text: str, *, may_fail: bool = False) -> None:
        commands.append(" ".join(argv))
        if argv[:3] == ["ip", "netns", "add"]:
            (namespaces / argv[3]).touch()
        if argv[:3] == ["ip", "netns", "delete"]:
            (namespaces / argv[3]).unlink()

    monkeypatch.setattr(slot_network, "read_host", lambda: read_host(file))
    monkeypatch.setattr(slot_network, "NAMESPACES", namespaces)
    monkeypatch.setattr(slot_network, "_run", run)
    return commands


class TestLife:
    def test_slot_goes_up_and_down(self, ran: list[str]) -> None:
        assert slot_network.up(2)["address"] == "192.168.100.2"
        assert slot_network.existing_slots() == {"slots": [2]}
        assert slot_network.down(2) == {"slot": 2, "removed": True}
        assert slot_network.existing_slots() == {"slots": []}

    def test_up_removes_an_existing_namespace_first(self, ran: list[str]) -> None:
        slot_network.up(2)
        ran.clear()
        slot_network.up(2)
        assert ran[:2] == ["ip netns delete slot-2", "ip netns add slot-2"]

    def test_down_of_a_missing_slot_does_nothing(self, ran: list[str]) -> None:
        assert slot_network.down(3) == {"slot": 3, "removed": False}
        assert ran == []

    def test_failed_up_removes_the_namespace(
        self, ran: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = slot_network._run

        def failing(argv: list[str], text: str, *, may_fail: bool = False) -> None:
            run(argv, text, may_fail=may_fail)
            if "nft" in argv:
                raise HostError("slot-failed", "nft: no")

        monkeypatch.setattr(slot_network, "_run", failing)
        with pytest.raises(HostError, match="nft: no"):
            slot_network.up(2)
        assert ran[-1] == "ip netns delete slot-2"
        assert slot_network.existing_slots() == {"slots": []}

    def test_up_of_an_unknown_slot_changes_nothing(self, ran: list[str]) -> None:
        with pytest.raises(HostError):
            slot_network.up(9)
        assert ran == []

    def test_slots_are_sorted_by_number(self, ran: list[str]) -> None:
        for number in (10, 9, 100):
            (slot_network.NAMESPACES / f"slot-{number}").touch()
        assert slot_network.existing_slots() == {"slots": [9, 10, 100]}


@pytest.mark.parametrize("text", [None, "", "{", "[1"])
def test_missing_or_malformed_host_file_is_refused(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "host.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(HostError) as failure:
        read_host(file)
    assert (failure.value.code, failure.value.hint) == ("no-host", "deploy this host")

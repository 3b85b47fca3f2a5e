"""A slot's commands and rules, as values."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from polydev.hosttool import slots
from polydev.hosttool.errors import HostError
from polydev.hosttool.slots import (
    inside_of,
    links_of,
    read_host,
    rules_of,
    slot_commands,
    slot_of,
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


class TestSlot:
    def test_its_names_and_addresses(self) -> None:
        slot = slot_of(3, HOST)
        assert (slot.namespace, slot.port) == ("slot-3", "vm-3")
        assert (slot.address, slot.gateway, slot.prefix) == ("192.168.100.3", "192.168.100.1", 24)

    def test_a_port_of_the_last_slot_still_names_an_interface(self) -> None:
        host = HOST | {"slots": [251]}
        assert len(slot_of(251, host).port) <= 15

    @pytest.mark.parametrize(
        "host", [HOST, {}, {"slots": [9]}, HOST | {"bridge": None}, HOST | {"slots": None}]
    )
    def test_one_that_the_host_does_not_have(self, host: dict[str, Any]) -> None:
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
    def test_who_its_guest_asks(self, words: dict[str, Any], resolver: str | None) -> None:
        assert slot_of(2, HOST | words).resolver == resolver


class TestCommands:
    def test_the_namespace_is_closed_before_anything_leads_out_of_it(self) -> None:
        commands = [argv for argv, _ in slot_commands(slot_of(2, HOST))]
        assert commands == [
            ["ip", "netns", "add", "slot-2"],
            *(
                ["ip", "netns", "exec", "slot-2", *rest]
                for rest in (
                    ["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"],
                    ["nft", "-f", "-"],
                )
            ),
            ["ip", "-batch", "-"],
            ["ip", "-n", "slot-2", "-batch", "-"],
        ]

    def test_its_port_is_in_the_bridge_and_isolated(self) -> None:
        lines = links_of(slot_of(2, HOST)).splitlines()
        assert lines == [
            "link add vm-2 type veth peer name uplink address 02:00:c0:a8:64:02 netns slot-2",
            "link set vm-2 master br-vm up",
            "link set vm-2 type bridge_slave isolated on",
        ]

    def test_inside_are_its_address_its_way_out_and_the_tap(self) -> None:
        lines = inside_of(slot_of(2, HOST)).splitlines()
        assert "addr add 192.168.100.2/24 dev uplink" in lines
        assert "route add default via 192.168.100.1" in lines
        assert lines.index("tuntap add dev tap0 mode tap user polydev-vm-2") < lines.index(
            "addr add 172.16.0.1/30 dev tap0"
        )


class TestRules:
    def test_nothing_leaves_that_says_to_be_somebody_else(self) -> None:
        rules = rules_of(slot_of(2, HOST))
        assert chain(rules, "ip slot", "forward")[:2] == [
            "type filter hook forward priority filter; policy drop;",
            'iifname "tap0" ip saddr != 172.16.0.2 drop',
        ]
        assert (
            chain(rules, "arp slot", "input")[1] == 'iifname "tap0" arp saddr ip != 172.16.0.2 drop'
        )

    def test_what_leaves_has_the_slots_address(self) -> None:
        (_, line) = chain(rules_of(slot_of(3, HOST)), "ip slot", "from_guest")
        assert line == 'oifname "uplink" ip saddr 172.16.0.2 snat to 192.168.100.3'

    def test_only_the_guests_ports_lead_in(self) -> None:
        rules = rules_of(slot_of(3, HOST))
        assert chain(rules, "ip slot", "to_guest")[1:] == [
            'iifname "uplink" ip daddr 192.168.100.3 tcp dport { 8080, 5901, 6080 } '
            "dnat to 172.16.0.2"
        ]
        assert 'iifname "uplink" oifname "tap0" ct status dnat accept' in rules

    def test_a_guest_asks_a_private_resolver_whomever_it_addresses(self) -> None:
        lines = chain(rules_of(slot_of(2, HOST | PRIVATE)), "ip slot", "to_guest")
        assert lines[-2:] == [
            'iifname "tap0" udp dport 53 dnat to 10.0.0.53',
            'iifname "tap0" tcp dport 53 dnat to 10.0.0.53',
        ]

    def test_without_one_nobody_is_redirected(self) -> None:
        assert "dport 53" not in rules_of(slot_of(2, HOST))

    def test_braces_are_closed(self) -> None:
        for host in (HOST, HOST | PRIVATE):
            rules = rules_of(slot_of(2, host))
            assert rules.count("{") == rules.count("}")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A host with no slot yet; every program that would be run."""
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

    monkeypatch.setattr(slots, "read_host", lambda: read_host(file))
    monkeypatch.setattr(slots, "NAMESPACES", namespaces)
    monkeypatch.setattr(slots, "_run", run)
    return commands


class TestLife:
    def test_up_and_down(self, ran: list[str]) -> None:
        assert slots.up(2)["address"] == "192.168.100.2"
        assert slots.there() == {"slots": [2]}
        assert slots.down(2) == {"slot": 2, "removed": True}
        assert slots.there() == {"slots": []}

    def test_what_is_left_of_an_earlier_one_goes_first(self, ran: list[str]) -> None:
        slots.up(2)
        ran.clear()
        slots.up(2)
        assert ran[:2] == ["ip netns delete slot-2", "ip netns add slot-2"]

    def test_what_is_not_there_is_not_removed(self, ran: list[str]) -> None:
        assert slots.down(3) == {"slot": 3, "removed": False}
        assert ran == []

    def test_a_slot_that_fails_half_way_leaves_nothing(
        self, ran: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = slots._run

        def failing(argv: list[str], text: str, *, may_fail: bool = False) -> None:
            run(argv, text, may_fail=may_fail)
            if "nft" in argv:
                raise HostError("slot-failed", "nft: no")

        monkeypatch.setattr(slots, "_run", failing)
        with pytest.raises(HostError, match="nft: no"):
            slots.up(2)
        assert ran[-1] == "ip netns delete slot-2"
        assert slots.there() == {"slots": []}

    def test_a_slot_beyond_the_hosts_changes_nothing(self, ran: list[str]) -> None:
        with pytest.raises(HostError):
            slots.up(9)
        assert ran == []

    def test_slots_are_in_the_order_of_their_numbers(self, ran: list[str]) -> None:
        for number in (10, 9, 100):
            (slots.NAMESPACES / f"slot-{number}").touch()
        assert slots.there() == {"slots": [9, 10, 100]}


@pytest.mark.parametrize("text", [None, "", "{", "[1"])
def test_a_host_that_is_not_deployed_is_said_to_be(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "host.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(HostError) as failure:
        read_host(file)
    assert (failure.value.code, failure.value.hint) == ("no-host", "deploy this host")

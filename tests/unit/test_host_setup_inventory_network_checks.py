"""Checks of an inventory's networks: against each other, and in a plan against the host's."""

from __future__ import annotations

import json
from ipaddress import IPv4Interface, IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polydev.errors import ConfigError
from polydev.host_setup.facts import HostNetworks
from polydev.host_setup.host_files_and_units import BRIDGE
from polydev.host_setup.inventory_network_checks import (
    CLOSED,
    HostNetwork,
    conflicts,
    open_to_the_internet,
)
from polydev.host_setup.inventory_values import check_host_data
from polydev.host_setup.network import network_values, require_free_networks
from tests.unit.fake_host import fake_host


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        check_host_data({"slots": 1, **values}, "box")
    assert caught.value.hint
    return caught.value.message.removeprefix("inventory: box: ")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"bridge_address": "172.16.0.1/24"},
            "bridge_address: 172.16.0.0/24 overlaps 172.16.0.0/30",
        ),
        (
            {"bridge_address": "172.16.0.1/12"},
            "bridge_address: 172.16.0.0/12 overlaps 172.16.0.0/30",
        ),
        ({"bridge_address": "127.0.1.1/24"}, "bridge_address: 127.0.1.0/24 overlaps 127.0.0.0/8"),
        ({"bridge_address": "169.254.1.1/24"}, "bridge_address: 169.254.1.0/24 overlaps 169.254."),
        ({"bridge_address": "224.0.1.1/24"}, "bridge_address: 224.0.1.0/24 overlaps 224.0.0.0/3"),
        ({"bridge_address": "8.8.8.1/24"}, "bridge_address: 8.8.8.0/24 is not a private network"),
        ({"bridge_address": "10.0.0.1/7"}, "bridge_address: 10.0.0.0/7 is not a private network"),
        ({"reachable": ["0.0.0.0/0"]}, "reachable.0: 0.0.0.0/0 overlaps 0.0.0.0/8"),
        ({"reachable": ["10.0.0.0/8", "0.0.0.0/1"]}, "reachable.1: 0.0.0.0/1 overlaps 0.0.0.0/8"),
        ({"reachable": ["128.0.0.0/1"]}, "reachable.0: 128.0.0.0/1 overlaps 169.254.0.0/16"),
        (
            {"reachable": ["127.0.0.0/8"]},
            "reachable.0: 127.0.0.0/8 overlaps 127.0.0.0/8: VMs never",
        ),
        (
            {"reachable": ["169.254.169.254/32"]},
            "reachable.0: 169.254.169.254/32 overlaps 169.254.",
        ),
        ({"reachable": ["192.0.0.0/3"]}, "reachable.0: 192.0.0.0/3 is wider than 192.0.0.0/24"),
        ({"reachable": ["10.0.0.0/7"]}, "reachable.0: 10.0.0.0/7 is wider than 10.0.0.0/8"),
        ({"reachable": ["192.168.100.0/24"]}, "reachable.0: 192.168.100.0/24 lies in 192.168.100."),
        ({"reachable": ["192.168.100.7/32"]}, "reachable.0: 192.168.100.7/32 lies in 192.168.100."),
        ({"reachable": ["172.16.0.0/30"]}, "reachable.0: 172.16.0.0/30 lies in 172.16.0.0/30"),
        ({"resolvers": ["0.0.0.1"]}, "resolvers.0: 0.0.0.1 is not the address of a host"),
        ({"upstream_resolvers": ["0.1.2.3"]}, "upstream_resolvers.0: 0.1.2.3 is not the address"),
        *(
            ({"controller_listen": f"{address}:53"}, "controller_listen: port 53 of 192.168.100.1")
            for address in ("0.0.0.0", "192.168.100.1", "[::]")
        ),
        ({"resolvers": ["127.0.0.53"]}, "resolvers.0: 127.0.0.53 would be the VM itself"),
        (
            {"resolvers": ["8.8.8.8", "0.0.0.0"]},
            "resolvers.1: 0.0.0.0 is not the address of",
        ),
        ({"resolvers": ["172.16.0.1"]}, "resolvers.0: 172.16.0.1 lies in 172.16.0.0/30"),
        ({"resolvers": ["192.168.100.9"]}, "resolvers.0: 192.168.100.9 lies in the VMs' network"),
        ({"upstream_resolvers": ["192.168.100.1"]}, "upstream_resolvers.0: 192.168.100.1 lies in"),
        (
            {"upstream_resolvers": ["224.0.0.1"]},
            "upstream_resolvers.0: 224.0.0.1 is not the address",
        ),
        ({"controller_listen": "192.168.100.7:4000"}, "controller_listen: 192.168.100.7 lies in"),
        ({"controller_listen": "172.16.0.1:4000"}, "controller_listen: 172.16.0.1 lies in 172.16."),
    ],
)
def test_invalid_networks_are_refused_with_their_key(values: dict[str, Any], said: str) -> None:
    assert refusal(values).startswith(said)


def test_all_errors_are_reported_at_once() -> None:
    said = refusal({"bridge_address": "172.16.0.1/24", "reachable": ["0.0.0.0/0"]})
    assert "bridge_address: " in said
    assert "; reachable.0: " in said


@pytest.mark.parametrize(
    "values",
    [
        {"bridge_address": "172.16.0.5/30"},
        {"bridge_address": "10.0.0.1/8", "slots": 250},
        {"reachable": ["192.168.0.0/16", "10.0.0.0/8", "100.64.0.0/10", "198.51.100.2/32"]},
        {"reachable": ["172.16.0.0/12"]},
        {"reachable": ["8.8.8.0/24"]},
        {"resolvers": ["192.168.100.1"]},
        {"resolvers": ["169.254.169.253"], "upstream_resolvers": ["127.0.0.53"]},
        {"controller_listen": "192.168.100.1:4000"},
    ],
)
def test_valid_networks_are_accepted(values: dict[str, Any]) -> None:
    check_host_data({"slots": 1, **values}, "box")


class TestReachable:
    def values(self, *networks: str) -> list[str]:
        site = check_host_data({"reachable": networks}, "box")
        return [str(each) for each in network_values(site)["reachable"]]

    def test_nested_networks_are_merged(self) -> None:
        found = self.values("10.1.0.0/16", "10.0.0.0/8", "10.1.2.3/32", "192.168.7.0/24")
        assert found == ["10.0.0.0/8", "192.168.7.0/24"]

    def test_equal_and_adjacent_networks_are_merged(self) -> None:
        assert self.values("10.0.0.0/9", "10.128.0.0/9", "10.0.0.0/9") == ["10.0.0.0/8"]

    @given(st.lists(st.tuples(st.integers(0, 2**24 - 1), st.integers(8, 32)), max_size=8))
    def test_merged_networks_never_overlap(self, parts: list[tuple[int, int]]) -> None:
        base = int(IPv4Interface("10.0.0.0").ip)
        given_ = [IPv4Network((base + low, bits), strict=False) for low, bits in parts]
        found = [IPv4Network(each) for each in self.values(*map(str, given_))]
        assert not any(a.overlaps(b) for a in found for b in found if a is not b)
        assert all(any(each.subnet_of(whole) for whole in found) for each in given_)


def answer(**devices: str) -> list[str]:
    addresses = [
        {"ifname": name, "addr_info": [{"local": at.partition("/")[0], "prefixlen": 24}]}
        for name, at in devices.items()
    ]
    routes = [
        {"dst": "default", "gateway": "192.0.2.1", "dev": "eth0"},
        {"dst": "128.0.0.0/1", "dev": "tun0"},
        {"dst": "10.8.0.0/16", "dev": "tun0"},
        {"dst": "10.9.0.1", "nexthops": []},
        {"type": "unreachable", "dst": "192.168.100.0/24", "metric": 4294967295},
        {"type": "local", "dst": "10.10.0.1", "dev": "eth0", "table": "local"},
    ]
    return [json.dumps(addresses), "", json.dumps(routes), ""]


HOST = answer(eth0="192.0.2.7", eth1="10.7.0.3", **{BRIDGE: "192.168.100.1"})


class TestHost:
    def test_host_addresses_and_routes_are_read(self) -> None:
        found = [str(each) for each in HostNetworks().process(HOST)]
        assert found == [
            "192.0.2.7/24 on eth0",
            "10.7.0.3/24 on eth1",
            "192.168.100.1/24 on br-vm",
            "0.0.0.0/0 on eth0",
            "128.0.0.0/1 on tun0",
            "10.8.0.0/16 on tun0",
            "10.9.0.1/32 in its routes",
        ]

    def test_host_without_ip_command_has_no_networks(self) -> None:
        assert HostNetworks().process([]) == HostNetworks.default() == []

    @pytest.mark.parametrize(
        ("bridge", "found"),
        [
            ("10.7.0.1/24", "10.7.0.3/24 on eth1"),
            ("10.7.0.3/24", "10.7.0.3/24 on eth1"),
            ("10.7.0.129/25", "10.7.0.3/24 on eth1"),
            ("10.0.0.1/8", "10.7.0.3/24 on eth1"),
            ("10.8.1.1/24", "10.8.0.0/16 on tun0"),
            ("10.9.0.9/24", "10.9.0.1/32 in its routes"),
        ],
    )
    def test_bridge_network_that_the_host_already_has_is_refused(
        self, bridge: str, found: str
    ) -> None:
        site = check_host_data({"bridge_address": bridge, "slots": 1}, "box")
        ((key, words),) = conflicts(site, HostNetworks().process(HOST), BRIDGE)
        assert key == "bridge_address"
        assert found in words

    @pytest.mark.parametrize("bridge", ["192.168.100.1/24", "10.6.0.1/24", "192.168.0.1/16"])
    def test_default_routes_and_own_bridge_are_no_conflict(self, bridge: str) -> None:
        site = check_host_data({"bridge_address": bridge, "slots": 1}, "box")
        assert list(conflicts(site, HostNetworks().process(HOST), BRIDGE)) == []

    def test_host_address_as_resolver_is_refused(self) -> None:
        site = check_host_data({"resolvers": ["8.8.8.8", "10.7.0.3"]}, "box")
        own = HostNetwork(IPv4Network("10.7.0.0/24"), "eth1", IPv4Interface("10.7.0.3").ip)
        ((key, words),) = conflicts(site, [own], BRIDGE)
        assert key == "resolvers.1"
        assert "192.168.100.1 is the host's cache" in words

    @pytest.mark.parametrize(
        ("listen", "found"),
        [
            ("127.0.0.1:4000", []),
            ("10.7.0.3:4000", []),
            ("9.9.9.9:4000", ["9.9.9.9"]),
            ("[2600::9]:4000", ["2600::9"]),
            ("0.0.0.0:4000", ["8.8.4.4"]),
            ("[::]:4000", ["8.8.4.4", "2600::7"]),
        ],
    )
    def test_open_to_the_internet_lists_public_listen_addresses(
        self, listen: str, found: list[str]
    ) -> None:
        said = HostNetworks().process(answer(eth0="8.8.4.4", eth1="10.7.0.3", eth2="2600::7"))
        site = check_host_data({"controller_listen": listen}, "box")
        assert open_to_the_internet(site, said) == found

    def test_default_listen_address_is_loopback(self) -> None:
        assert check_host_data({}, "box").listen.address.is_loopback

    def test_plan_refuses_overlapping_networks(self) -> None:
        site = check_host_data({"bridge_address": "10.7.0.1/24"}, "box")
        with (
            fake_host({"ip -json": {"stdout": HOST}}),
            pytest.raises(ConfigError, match=r"bridge_address: 10\.7\.0\.0/24 overlaps"),
        ):
            require_free_networks(site)


def test_closed_networks_are_unique() -> None:
    assert len({IPv4Network(each) for each in CLOSED}) == len(CLOSED)

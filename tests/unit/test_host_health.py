"""The host's figures: conversion from psutil, limits, parts that fail or hang."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import namedtuple
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from polydev.controller.host import network_checks
from polydev.controller.host.blocking_call import BlockingCall, NoAnswer
from polydev.controller.host.network_checks import (
    NetworkChecks,
    bridge_check,
    default_routes,
    dns_check,
    route_check,
    slots_check,
)
from polydev.controller.host.psutil_reader import (
    NO_CRITICAL_VALUE,
    cpu_model,
    cpu_usage,
    disk_figures,
    memory_figures,
    network_figures,
    real_filesystems,
    temperature_figures,
    with_rates,
)
from polydev.controller.host.system_monitor import SystemMonitor
from polydev.controller.host.system_status import SystemStatus, status_of_percent, worst
from polydev.controller.settings import AlertSettings

LIMITS = AlertSettings()
NETWORK = IPv4Network("192.168.100.0/24")
UP = SimpleNamespace(isup=True, flags="up,broadcast,running,multicast")
DOWN = SimpleNamespace(isup=False, flags="broadcast,multicast")
NO_CARRIER = SimpleNamespace(isup=False, flags="up,broadcast,multicast")
ROUTE_HEAD = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
DEFAULT_ROUTE = "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
LINK_ROUTE = "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
CpuTimes = namedtuple("CpuTimes", "user system idle iowait guest")


def partition(device: str, mountpoint: str, fstype: str = "ext4") -> Any:
    return SimpleNamespace(device=device, mountpoint=mountpoint, fstype=fstype)


def sensor(current: float | None, critical: float | None = None) -> Any:
    return SimpleNamespace(current=current, critical=critical)


def counted(received: int, sent: int) -> Any:
    return SimpleNamespace(bytes_recv=received, bytes_sent=sent)


class TestStatus:
    @pytest.mark.parametrize(
        ("percent", "status"),
        [(0, "healthy"), (69.9, "healthy"), (70, "warning"), (90, "warning"), (90.1, "critical")],
    )
    def test_status_of_a_percentage(self, percent: float, status: str) -> None:
        assert status_of_percent(percent, LIMITS) == status

    def test_limits_come_from_the_settings(self) -> None:
        limits = AlertSettings(warning_percent=40, critical_percent=45)
        assert status_of_percent(50, limits) == "critical"

    def test_worst_status_is_chosen(self) -> None:
        assert worst(["healthy", "critical", "warning"]) == "critical"
        assert worst(["healthy", "unknown"]) == "unknown"
        assert worst(["unknown", "warning"]) == "warning"
        assert worst([]) == "unknown"


class TestCpu:
    def test_cpu_usage_excludes_iowait_and_counts_guests_once(self) -> None:
        before = CpuTimes(100, 100, 100, 100, 50)
        assert cpu_usage(before, CpuTimes(125, 125, 125, 125, 75)) == 50.0

    def test_cpu_usage_without_elapsed_time_is_zero(self) -> None:
        same = CpuTimes(1, 1, 1, 1, 1)
        assert cpu_usage(same, same) == 0.0

    def test_cpu_usage_with_a_decreased_counter_is_bounded(self) -> None:
        assert cpu_usage(CpuTimes(0, 0, 10, 0, 0), CpuTimes(20, 0, 5, 0, 0)) == 100.0

    @pytest.mark.parametrize(
        ("cpuinfo", "model"),
        [
            (
                "processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\n\nprocessor\t: 1\n",
                "Some CPU @ 3 GHz",
            ),
            ("processor : 0\n\nModel : A board: rev 2\n", "A board: rev 2"),
        ],
    )
    def test_cpu_model_is_read_from_cpuinfo(self, cpuinfo: str, model: str) -> None:
        assert cpu_model(cpuinfo) == model

    def test_cpu_model_has_a_fallback(self) -> None:
        assert cpu_model("")


class TestMemory:
    def test_used_and_free_memory_add_up_to_total(self) -> None:
        told = memory_figures(SimpleNamespace(total=1000, available=250), LIMITS)
        assert (told.used, told.free, told.percent, told.status) == (750, 250, 75.0, "warning")


class TestDisks:
    def test_each_device_is_listed_once_by_its_shortest_mount(self) -> None:
        physical = [
            partition("/dev/vda1", "/var/lib/microvm"),
            partition("/dev/vda1", "/"),
            partition("/dev/vdb", "/data", "xfs"),
            partition("/dev/loop0", "/snap/core", "squashfs"),
        ]
        assert [each.mountpoint for each in real_filesystems(physical, physical)] == ["/", "/data"]

    def test_overlay_root_is_listed(self) -> None:
        everything = [partition("overlay", "/", "overlay"), partition("proc", "/proc", "proc")]
        assert [each.mountpoint for each in real_filesystems([], everything)] == ["/"]

    def test_disk_percent_excludes_space_reserved_for_root(self) -> None:
        usage = SimpleNamespace(total=1000, used=900, free=50)
        told = disk_figures(partition("/dev/vda", "/"), usage, LIMITS)
        assert told.model_dump() == {
            "status": "critical",
            "filesystem": "/dev/vda",
            "size": 1000,
            "used": 900,
            "available": 50,
            "percent": 94.7,
            "mount": "/",
        }


class TestNetwork:
    def test_interfaces_are_listed_with_state_and_bytes(self) -> None:
        told = network_figures(
            {"lo": UP, "eth0": UP, "vm-2": DOWN},
            {
                "vm-2": counted(1, 2),
                "eth0": counted(3, 4),
                "lo": counted(5, 5),
                "gone": counted(6, 6),
            },
        )
        assert told.status == "healthy"
        found = [(each.name, each.status, each.rx_bytes, each.tx_bytes) for each in told.interfaces]
        assert found == [("eth0", "up", 3, 4), ("lo", "up", 5, 5), ("vm-2", "down", 1, 2)]

    def test_network_rates_since_the_previous_measurement(self) -> None:
        stats = {"eth0": UP, "new": UP}
        before = network_figures(stats, {"eth0": counted(100, 50)})
        after = network_figures(stats, {"eth0": counted(300, 40), "new": counted(5, 5)})
        eth0, new = with_rates(after, before, 10).interfaces
        assert (eth0.rx_bytes_per_second, eth0.tx_bytes_per_second) == (20.0, None)
        assert (new.rx_bytes_per_second, new.tx_bytes_per_second) == (None, None)

    def test_network_is_critical_with_only_loopback_up(self) -> None:
        stats = {"lo": UP, "eth0": DOWN}
        told = network_figures(stats, dict.fromkeys(stats, counted(0, 0)))
        assert told.status == "critical"
        assert told.detail


class TestTemperature:
    def test_cpu_sensor_takes_precedence_over_a_disk_sensor(self) -> None:
        told = temperature_figures(
            {"nvme": [sensor(80.0, 84.0)], "coretemp": [sensor(50.0, 100.0), sensor(61.0, 100.0)]}
        )
        assert told is not None
        assert (told.current, told.critical, told.status) == (61.0, 100.0, "healthy")

    @pytest.mark.parametrize(
        ("celsius", "status"),
        [
            (63.9, "healthy"),
            (64, "healthy"),
            (64.1, "warning"),
            (79.9, "warning"),
            (80, "critical"),
        ],
    )
    def test_temperature_status_follows_the_critical_value(
        self, celsius: float, status: str
    ) -> None:
        told = temperature_figures({"coretemp": [sensor(celsius, 80.0)]})
        assert told is not None
        assert (told.status, told.detail) == (status, None)

    def test_implausible_critical_temperature_is_ignored(self) -> None:
        told = temperature_figures({"acpitz": [sensor(99.0, 65261.85)]})
        assert told is not None
        assert (told.critical, told.status) == (None, "healthy")
        assert told.detail == NO_CRITICAL_VALUE

    @pytest.mark.parametrize("sensors", [{}, {"coretemp": []}, {"coretemp": [sensor(None)]}])
    def test_no_temperature_without_a_sensor(self, sensors: dict[str, list[Any]]) -> None:
        assert temperature_figures(sensors) is None


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Fake figures of psutil; exceptions among them are raised."""
    told: dict[str, Any] = {
        "cpu_times": CpuTimes(0, 0, 0, 0, 0),
        "cpu_count": 2,
        "virtual_memory": SimpleNamespace(total=100, available=60),
        "disk_partitions": [partition("/dev/vda", "/"), partition("/dev/vdb", "/data")],
        "disk_usage": SimpleNamespace(total=100, used=10, free=90),
        "net_if_stats": {"eth0": UP},
        "net_io_counters": {"eth0": counted(1, 2)},
        "sensors_temperatures": {"coretemp": [sensor(45.0, 90.0)]},
        "boot_time": 0.0,
        "getloadavg": (0.1, 0.2, 0.3),
    }

    def answer(name: str) -> Any:
        def ask(*words: Any, **more: Any) -> Any:
            found = told[name]
            if callable(found):
                found = found(*words)
            if isinstance(found, Exception):
                raise found
            return found

        return ask

    for name in told:
        monkeypatch.setattr(psutil, name, answer(name))
    monkeypatch.setattr("polydev.controller.host.system_monitor.SHORTEST_SPAN_SECONDS", 0.0)
    return told


def system() -> SystemStatus:
    return asyncio.run(SystemMonitor(LIMITS).system())


class TestSystem:
    def test_system_status_fields(self, machine: dict[str, Any]) -> None:
        told = system().model_dump(mode="json")
        assert set(told) == {
            "status",
            "cpu",
            "memory",
            "disk",
            "network",
            "temperature",
            "uptime",
            "load_average",
        }
        assert set(told["cpu"]) == {"status", "usage", "cores", "model"}
        assert set(told["memory"]) == {"status", "total", "used", "free", "percent"}
        assert [each["mount"] for each in told["disk"]] == ["/", "/data"]
        assert set(told["network"]) == {"status", "interfaces"}
        assert told["temperature"] == {"status": "healthy", "current": 45.0, "critical": 90.0}
        assert told["load_average"] == [0.1, 0.2, 0.3]
        assert told["status"] == "healthy"

    def test_host_without_a_sensor_is_healthy(self, machine: dict[str, Any]) -> None:
        machine["sensors_temperatures"] = {}
        told = system()
        assert "temperature" not in told.model_dump()
        assert (told.status, told.unavailable) == ("healthy", {})
        alone = asyncio.run(SystemMonitor(LIMITS).temperature())
        assert (alone.current, alone.critical, alone.status) == (None, None, "unknown")
        assert alone.detail
        assert "no temperature sensor" in alone.detail

    @pytest.mark.parametrize(
        ("broken", "part"),
        [
            ("cpu_times", "cpu"),
            ("virtual_memory", "memory"),
            ("disk_partitions", "disk"),
            ("net_io_counters", "network"),
            ("sensors_temperatures", "temperature"),
            ("boot_time", "uptime"),
            ("getloadavg", "load_average"),
        ],
    )
    def test_failed_part_is_reported_and_others_are_measured(
        self, machine: dict[str, Any], broken: str, part: str
    ) -> None:
        machine[broken] = OSError(5, "Input/output error")
        told = system()
        assert told.unavailable == {part: "Input/output error"}
        for other in {"cpu", "memory", "network"} - {part}:
            assert getattr(told, other).status == "healthy"

    def test_system_status_is_the_worst_of_its_parts(self, machine: dict[str, Any]) -> None:
        machine["disk_usage"] = lambda mount: SimpleNamespace(
            total=100, used=95 if mount == "/data" else 5, free=5
        )
        told = system()
        assert told.status == "critical"
        assert {each.mount: each.status for each in told.disk}["/data"] == "critical"

    def test_hanging_disk_does_not_block_the_others(self, machine: dict[str, Any]) -> None:
        let_go, hangs, asked = threading.Event(), threading.Event(), []

        def usage(mount: str) -> Any:
            if mount == "/data":
                asked.append(mount)
                hangs.set()
                let_go.wait()
            return SimpleNamespace(total=100, used=10, free=90)

        machine["disk_usage"] = usage

        async def ask() -> list[Any]:
            host = SystemMonitor(LIMITS, timeout_seconds=60)
            host._disks["/data"] = BlockingCall(partial(psutil.disk_usage, "/data"), 0.05)
            found = [await host.disk() for _ in range(3)]
            assert hangs.wait(60)
            assert len(asked) == 1
            let_go.set()
            return found

        for told in asyncio.run(ask()):
            by_mount = {each.mount: each for each in told.disk}
            assert by_mount["/"].status == "healthy"
            assert by_mount["/data"].status == "unknown"
            assert by_mount["/data"].detail == "no answer within 0.05 s"

    def test_cpu_usage_is_measured_since_the_last_call(self, machine: dict[str, Any]) -> None:
        async def ask() -> list[float | None]:
            host = SystemMonitor(LIMITS)
            found = []
            for busy in (0, 30, 120):
                machine["cpu_times"] = CpuTimes(busy, 0, 100 if busy else 0, 0, 0)
                found.append((await host.cpu()).usage)
            return found

        assert asyncio.run(ask()) == [0.0, 23.1, 100.0]

    def test_network_rates_are_measured_since_the_last_call(self, machine: dict[str, Any]) -> None:
        async def ask() -> list[float | None]:
            host, found = SystemMonitor(LIMITS), []
            for received in (0, 1000, 500):
                machine["net_io_counters"] = {"eth0": counted(received, 0)}
                (interface,) = (await host.network()).interfaces
                found.append(interface.rx_bytes_per_second)
            return found

        first, second, third = asyncio.run(ask())
        assert (first, third) == (None, None)
        assert second is not None
        assert second > 0


class TestBlockingCall:
    def test_concurrent_callers_share_one_answer(self) -> None:
        let_go, asked = threading.Event(), []

        def ask() -> int:
            asked.append(1)
            let_go.wait()
            return 7

        async def both() -> list[int]:
            probe = BlockingCall(ask)
            first = asyncio.ensure_future(probe())
            second = asyncio.ensure_future(probe())
            await asyncio.sleep(0)
            let_go.set()
            return [await first, await second]

        assert asyncio.run(both()) == [7, 7]
        assert len(asked) == 1

    def test_cancelled_caller_does_not_affect_others(self) -> None:
        let_go = threading.Event()

        async def both() -> bool:
            probe = BlockingCall(let_go.wait)
            first, second = asyncio.ensure_future(probe()), asyncio.ensure_future(probe())
            await asyncio.sleep(0)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            let_go.set()
            return await second

        assert asyncio.run(both())

    def test_failure_without_a_message_names_its_type(self) -> None:
        def fail() -> None:
            raise KeyError

        async def ask() -> None:
            await BlockingCall(fail)()

        with pytest.raises(NoAnswer, match="KeyError"):
            asyncio.run(ask())


class TestNetworkHealth:
    def address(self, text: str) -> Any:
        return SimpleNamespace(family=socket.AF_INET, address=text)

    @pytest.mark.parametrize("state", [UP, NO_CARRIER])
    def test_bridge_that_is_up_is_healthy(self, state: Any) -> None:
        right = {"br-vm": [self.address("192.168.100.1")]}
        assert bridge_check({"br-vm": state}, right, NETWORK).status == "healthy"

    def test_bridge_that_is_down_is_critical(self) -> None:
        told = bridge_check({"br-vm": DOWN}, {"br-vm": [self.address("192.168.100.1")]}, NETWORK)
        assert told.status == "critical"
        assert "br-vm is down" in told.detail
        assert told.hint

    @pytest.mark.parametrize("addresses", [{}, {"br-vm": []}, {"br-vm": ["10.0.0.1"]}])
    def test_bridge_without_its_address_is_critical(self, addresses: dict[str, list[str]]) -> None:
        given = {name: [self.address(each) for each in some] for name, some in addresses.items()}
        told = bridge_check({"br-vm": UP}, given, NETWORK)
        assert told.status == "critical"
        assert told.hint

    def test_missing_bridge_is_critical(self) -> None:
        told = bridge_check({}, {}, NETWORK)
        assert told.status == "critical"
        assert told.hint
        assert "polydev-network.service" in told.hint

    @pytest.mark.parametrize(
        ("stats", "status", "detail"),
        [
            ({"vm-2": UP, "vm-3": UP}, "healthy", "all 2 slots are connected"),
            ({"vm-2": UP}, "warning", "of 2 slots 3 are missing"),
            ({"vm-2": UP, "vm-3": DOWN}, "warning", "of 2 slots 3 are down"),
            ({"vm-2": DOWN}, "critical", "of 2 slots 3 are missing and 2 are down"),
        ],
    )
    def test_missing_slots_are_a_warning(
        self, stats: dict[str, Any], status: str, detail: str
    ) -> None:
        told = slots_check(stats, (2, 3))
        assert (told.status, told.detail) == (status, detail)
        assert (told.hint is None) == (status == "healthy")

    def test_host_without_slots_is_a_warning(self) -> None:
        assert slots_check({}, ()).status == "warning"

    @pytest.mark.parametrize(
        ("routes", "routes_v6", "interfaces"),
        [
            (ROUTE_HEAD + DEFAULT_ROUTE + LINK_ROUTE, "", ["eth0"]),
            (ROUTE_HEAD + LINK_ROUTE, "", []),
            ("", "", []),
            (
                "",
                f"{'0' * 32} 00 {'0' * 32} 00 fe80{'0' * 27}1 00000400 1 0 00000003 eth1\n"
                f"{'0' * 32} 00 {'0' * 32} 00 {'0' * 32} ffffffff 1 0 00200200 lo\n",
                ["eth1"],
            ),
        ],
    )
    def test_default_routes_are_parsed(
        self, routes: str, routes_v6: str, interfaces: list[str]
    ) -> None:
        assert default_routes(routes, routes_v6) == interfaces

    def test_missing_default_route_is_critical(self) -> None:
        assert route_check(["eth0"]).status == "healthy"
        assert route_check([]).status == "critical"

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (None, "healthy"),
            (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "warning"),
            (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "critical"),
            (NoAnswer("no answer within 5 s"), "critical"),
        ],
    )
    def test_dns_check_status(self, error: Exception | None, status: str) -> None:
        told = dns_check(error)
        assert told.status == status
        assert (told.hint is None) == (error is None)

    def test_network_report_continues_after_a_failed_check(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def broken() -> Any:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(network_checks, "_read_interfaces", broken)
        monkeypatch.setattr(network_checks, "_read_routes", lambda: (ROUTE_HEAD, ""))
        monkeypatch.setattr(network_checks, "_resolve", lambda: None)
        probe = NetworkChecks(NETWORK, (2,), report_file=tmp_path / "none.json")
        told = asyncio.run(probe.report())
        assert {each.name: each.status for each in told.checks} == {
            "bridge": "unknown",
            "slots": "unknown",
            "vm_network": "unknown",
            "default_route": "critical",
            "names": "healthy",
        }
        assert told.status == "critical"


def test_measurements_run_outside_the_event_loop(machine: dict[str, Any]) -> None:
    seen: list[int] = []

    def times() -> Any:
        seen.append(threading.get_ident())
        return CpuTimes(0, 0, 1, 0, 0)

    machine["cpu_times"] = times
    asyncio.run(SystemMonitor(LIMITS).cpu())
    assert seen
    assert threading.get_ident() not in seen

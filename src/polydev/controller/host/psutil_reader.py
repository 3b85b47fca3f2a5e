"""Reads the host's CPU, memory, disks, network and temperature with psutil, each part by itself."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from polydev.controller.host.system_status import (
    CpuStatus,
    DiskStatus,
    InterfaceStatus,
    MemoryStatus,
    NetworkStatus,
    TemperatureStatus,
    status_of_percent,
    status_of_temperature,
)
from polydev.controller.settings import AlertSettings

CPUINFO = Path("/proc/cpuinfo")
LOOPBACK = "lo"
# Read-only images, which are always full.
FIXED_FILESYSTEMS = frozenset({"squashfs", "iso9660", "udf", "erofs", "cramfs"})
# In this order: sensors of the processor before those of the board or of a disk.
SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal", "acpitz")
# Some sensors name an impossible critical value.
CRITICAL_CELSIUS = (40.0, 150.0)
NO_CRITICAL_VALUE = "the sensor has no critical value, so the temperature cannot be rated"
NO_SENSOR = "this host has no temperature sensor, as is usual for a virtual machine"


def cpu_figures(usage: float, cores: int | None, model: str, limits: AlertSettings) -> CpuStatus:
    return CpuStatus(status=status_of_percent(usage, limits), usage=usage, cores=cores, model=model)


def cpu_usage(before: Any, after: Any) -> float:
    """Return the percentage of time between two of psutil's `cpu_times` in which cores worked."""
    spent = {name: getattr(after, name) - getattr(before, name) for name in after._fields}
    # User time includes the time of guests already.
    total = sum(value for name, value in spent.items() if not name.startswith("guest"))
    idle: float = spent["idle"] + spent.get("iowait", 0.0)
    return _percent(total - idle, total)


def cpu_model(cpuinfo: str) -> str:
    """Return the processor's name; on some ARM machines that of the machine or architecture."""
    parts = (line.partition(":") for line in cpuinfo.splitlines())
    named = {key.strip(): value.strip() for key, _, value in parts}
    found = named.get("model name") or named.get("Model") or named.get("Hardware")
    return found or platform.processor() or platform.machine()


def _percent(part: float, whole: float) -> float:
    return round(min(max(100.0 * part / whole, 0.0), 100.0), 1) if whole > 0 else 0.0


def memory_figures(memory: Any, limits: AlertSettings) -> MemoryStatus:
    used = memory.total - memory.available
    percent = _percent(used, memory.total)
    return MemoryStatus(
        status=status_of_percent(percent, limits),
        total=memory.total,
        used=used,
        free=memory.available,
        percent=percent,
    )


def real_filesystems(physical: Sequence[Any], everything: Iterable[Any]) -> list[Any]:
    """Return those of psutil's partitions that hold data: one per device, with its shortest mount.

    The root is always among them, even in a container, where it is an overlay.
    """
    root = [each for each in everything if each.mountpoint == "/" and each.fstype != "rootfs"]
    found = [each for each in physical if each.fstype not in FIXED_FILESYSTEMS]
    if not any(each.mountpoint == "/" for each in found):
        found += root[-1:]
    by_device: dict[str, Any] = {}
    for each in sorted(found, key=lambda each: (len(each.mountpoint), each.mountpoint)):
        by_device.setdefault(each.device, each)
    return sorted(by_device.values(), key=lambda each: str(each.mountpoint))


def disk_figures(partition: Any, usage: Any, limits: AlertSettings) -> DiskStatus:
    """Return a filesystem's status; like in `df`, `percent` excludes what only root may use."""
    percent = _percent(usage.used, usage.used + usage.free)
    return DiskStatus(
        status=status_of_percent(percent, limits),
        filesystem=partition.device,
        size=usage.total,
        used=usage.used,
        available=usage.free,
        percent=percent,
        mount=partition.mountpoint,
    )


def network_figures(stats: Mapping[str, Any], counters: Mapping[str, Any]) -> NetworkStatus:
    interfaces = [
        InterfaceStatus(
            name=name,
            status="up" if stats[name].isup else "down",
            rx_bytes=counted.bytes_recv,
            tx_bytes=counted.bytes_sent,
        )
        for name, counted in sorted(counters.items())
        if name in stats  # else it vanished in between
    ]
    if any(each.status == "up" for each in interfaces if each.name != LOOPBACK):
        return NetworkStatus(status="healthy", interfaces=interfaces)
    return NetworkStatus(
        status="critical",
        detail="no network interface is up except the loopback",
        interfaces=interfaces,
    )


def with_rates(network: NetworkStatus, earlier: NetworkStatus, seconds: float) -> NetworkStatus:
    """Return the network with the rates since its measurement `seconds` earlier."""
    before = {each.name: each for each in earlier.interfaces}

    def rated(each: InterfaceStatus) -> InterfaceStatus:
        past = before.get(each.name)
        received, sent = (past.rx_bytes, past.tx_bytes) if past else (None, None)
        rates = {
            "rx_bytes_per_second": rate(each.rx_bytes, received, seconds),
            "tx_bytes_per_second": rate(each.tx_bytes, sent, seconds),
        }
        return each.model_copy(update=rates)

    return network.model_copy(update={"interfaces": [*map(rated, network.interfaces)]})


def rate(value: int, earlier: int | None, seconds: float) -> float | None:
    """Return a counter's rate; None where the counter was reset since, or did not exist."""
    if earlier is None or value < earlier or seconds <= 0:
        return None
    return round((value - earlier) / seconds, 1)


def temperature_figures(sensors: Mapping[str, Sequence[Any]]) -> TemperatureStatus | None:
    """Return the hottest sensor of the processor, or else of another part; None without any."""
    chips = [sensors[name] for name in SENSORS if sensors.get(name)] or list(sensors.values())
    known = [each for each in (chips[0] if chips else ()) if each.current]
    if not known:
        return None
    hottest = max(known, key=lambda each: float(each.current))
    low, high = CRITICAL_CELSIUS
    critical = hottest.critical if hottest.critical and low <= hottest.critical <= high else None
    return TemperatureStatus(
        status=status_of_temperature(hottest.current, critical),
        detail=None if critical else NO_CRITICAL_VALUE,
        current=hottest.current,
        critical=critical,
    )


def read_cpu() -> tuple[Any, int | None, str]:
    """Return CPU times since the host's start, the number of cores, and the processor's name."""
    return psutil.cpu_times(), psutil.cpu_count(), read_cpu_model(CPUINFO)


@lru_cache
def read_cpu_model(cpuinfo: Path) -> str:
    """Return the processor's name; it is read once."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        text = ""
    return cpu_model(text)


def read_memory() -> Any:
    return psutil.virtual_memory()


def read_filesystems() -> list[Any]:
    return real_filesystems(psutil.disk_partitions(), psutil.disk_partitions(all=True))


def read_network() -> NetworkStatus:
    return network_figures(psutil.net_if_stats(), psutil.net_io_counters(pernic=True, nowrap=False))


def read_sensors() -> Mapping[str, Sequence[Any]]:
    return psutil.sensors_temperatures()


def read_uptime() -> float:
    return round(time.time() - psutil.boot_time(), 1)


def read_load_average() -> list[float]:
    return [round(each, 2) for each in psutil.getloadavg()]

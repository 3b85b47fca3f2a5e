"""Measures the host, each part by itself: one that fails or hangs does not hide the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import psutil

from polydev.controller.host import blocking_call, psutil_reader
from polydev.controller.host.blocking_call import BlockingCall, NoAnswer
from polydev.controller.host.system_status import (
    CpuStatus,
    DisksStatus,
    DiskStatus,
    MemoryStatus,
    NetworkStatus,
    PartStatus,
    SystemStatus,
    TemperatureStatus,
    worst,
)
from polydev.controller.settings import AlertSettings

# CPU time is counted in hundredths of a second: over less than this a percentage is inaccurate.
SHORTEST_SPAN_SECONDS = 0.5
# A rate over more than this is not a current one.
LONGEST_SPAN_SECONDS = 60.0

T = TypeVar("T")
P = TypeVar("P", bound=PartStatus)


class SystemMonitor:
    """Measures percentages and rates since the previous call, so a process has one of these."""

    def __init__(
        self, limits: AlertSettings, timeout_seconds: float = blocking_call.TIMEOUT_SECONDS
    ) -> None:
        self._limits = limits
        self._timeout_seconds = timeout_seconds
        self._cpu = BlockingCall(psutil_reader.read_cpu, timeout_seconds)
        self._memory = BlockingCall(psutil_reader.read_memory, timeout_seconds)
        self._filesystems = BlockingCall(psutil_reader.read_filesystems, timeout_seconds)
        self._disks: dict[str, BlockingCall[Any]] = {}
        self._network = BlockingCall(psutil_reader.read_network, timeout_seconds)
        self._sensors = BlockingCall(psutil_reader.read_sensors, timeout_seconds)
        self._uptime = BlockingCall(psutil_reader.read_uptime, timeout_seconds)
        self._load_average = BlockingCall(psutil_reader.read_load_average, timeout_seconds)
        self._measured: tuple[float, Any, float | None] | None = None
        self._one_at_a_time = asyncio.Lock()
        self._measured_network: tuple[float, NetworkStatus] | None = None
        self._one_network_at_a_time = asyncio.Lock()

    async def cpu(self) -> CpuStatus:
        return await _or_unknown(
            self._read_cpu, lambda why: CpuStatus(status="unknown", detail=why)
        )

    async def memory(self) -> MemoryStatus:
        async def read() -> MemoryStatus:
            return psutil_reader.memory_figures(await self._memory(), self._limits)

        return await _or_unknown(read, lambda why: MemoryStatus(status="unknown", detail=why))

    async def disk(self) -> DisksStatus:
        return await _or_unknown(
            self._read_disks, lambda why: DisksStatus(status="unknown", detail=why, disk=[])
        )

    async def network(self) -> NetworkStatus:
        return await _or_unknown(
            self._read_network,
            lambda why: NetworkStatus(status="unknown", detail=why, interfaces=[]),
        )

    async def temperature(self) -> TemperatureStatus:
        async def read() -> TemperatureStatus:
            found = psutil_reader.temperature_figures(await self._sensors())
            return found or TemperatureStatus(status="unknown", detail=psutil_reader.NO_SENSOR)

        return await _or_unknown(read, lambda why: TemperatureStatus(status="unknown", detail=why))

    async def system(self) -> SystemStatus:
        cpu, memory, disks, network, temperature = await asyncio.gather(
            self.cpu(), self.memory(), self.disk(), self.network(), self.temperature()
        )
        unavailable: dict[str, str] = {}
        uptime = await _or_none("uptime", self._uptime, unavailable)
        load_average = await _or_none("load_average", self._load_average, unavailable)
        parts: dict[str, PartStatus] = {
            "cpu": cpu,
            "memory": memory,
            "disk": disks,
            "network": network,
        }
        if temperature.detail != psutil_reader.NO_SENSOR:
            parts["temperature"] = temperature
        unavailable |= {
            name: part.detail or "" for name, part in parts.items() if part.status == "unknown"
        }
        return SystemStatus(
            status=worst(part.status for part in parts.values()),
            cpu=cpu,
            memory=memory,
            disk=disks.disk,
            network=network,
            temperature=None if temperature.current is None else temperature,
            uptime=uptime,
            load_average=load_average,
            unavailable=unavailable,
        )

    async def _read_cpu(self) -> CpuStatus:
        async with self._one_at_a_time:
            times, cores, model = await self._cpu()
            before = self._measured
            if before is None:
                await asyncio.sleep(SHORTEST_SPAN_SECONDS)
                before = (0.0, times, None)
                times, cores, model = await self._cpu()
            at, earlier, usage = before
            if usage is None or time.monotonic() - at >= SHORTEST_SPAN_SECONDS:
                usage = psutil_reader.cpu_usage(earlier, times)
                self._measured = (time.monotonic(), times, usage)
        return psutil_reader.cpu_figures(usage, cores, model, self._limits)

    async def _read_network(self) -> NetworkStatus:
        async with self._one_network_at_a_time:
            found, at = await self._network(), time.monotonic()
            before = self._measured_network
            if before and at - before[0] < SHORTEST_SPAN_SECONDS:
                return before[1]
            if before and at - before[0] <= LONGEST_SPAN_SECONDS:
                found = psutil_reader.with_rates(found, before[1], at - before[0])
            self._measured_network = (at, found)
            return found

    async def _read_disks(self) -> DisksStatus:
        partitions = await self._filesystems()
        # Mounts that are gone are dropped; one that hangs is not read twice at a time.
        self._disks = {
            mount: self._disks.get(mount) or self._disk_probe(mount)
            for mount in (each.mountpoint for each in partitions)
        }
        disks = await asyncio.gather(
            *(self._read_disk(each, self._disks[each.mountpoint]) for each in partitions)
        )
        return DisksStatus(status=worst(each.status for each in disks), disk=list(disks))

    def _disk_probe(self, mount: str) -> BlockingCall[Any]:
        return BlockingCall(partial(psutil.disk_usage, mount), self._timeout_seconds)

    async def _read_disk(self, partition: Any, usage: BlockingCall[Any]) -> DiskStatus:
        async def read() -> DiskStatus:
            return psutil_reader.disk_figures(partition, await usage(), self._limits)

        return await _or_unknown(
            read,
            lambda why: DiskStatus(
                status="unknown",
                detail=why,
                filesystem=partition.device,
                mount=partition.mountpoint,
            ),
        )


async def _or_unknown(read: Callable[[], Awaitable[P]], unknown: Callable[[str], P]) -> P:
    try:
        return await read()
    except NoAnswer as error:
        return unknown(str(error))


async def _or_none(name: str, read: BlockingCall[T], unavailable: dict[str, str]) -> T | None:
    try:
        return await read()
    except NoAnswer as error:
        unavailable[name] = str(error)
        return None

"""Prometheus metrics of the host, from the newest sample: reading them measures nothing.

`machines.metrics` has the number of VMs in each state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from polydev.controller.entities import Alert
from polydev.controller.host.alert_sender import SendResult
from polydev.controller.host.sample import Sample, VmSample

VM_GAUGES: tuple[tuple[str, str, str], ...] = (
    ("polydev_vm_cpu_percent", "Percent of all the host's cores", "cpu_percent"),
    ("polydev_vm_memory_bytes", "Memory", "memory_bytes"),
    ("polydev_vm_disk_bytes", "Disk space of its files", "disk_bytes"),
)
VM_COUNTERS: tuple[tuple[str, str, str], ...] = (
    ("polydev_vm_cpu_seconds", "CPU time", "cpu_seconds"),
    ("polydev_vm_received_bytes", "Received by the slot's VMs", "received_bytes"),
    ("polydev_vm_sent_bytes", "Sent by the slot's VMs", "sent_bytes"),
)


class Latest(Protocol):
    """Source of the newest sample; None before the first one."""

    latest: Sample | None
    standing: list[Alert]

    @property
    def messages(self) -> Mapping[tuple[str, SendResult], int]: ...


class HostCollector(Collector):
    def __init__(self, source: Latest) -> None:
        self._source = source

    def describe(self) -> Iterable[Metric]:
        """Return nothing: else a registry would call `collect` to learn the names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        sample = self._source.latest
        if sample is not None:
            yield from _host(sample)
            yield from _counts(sample)
            yield from _vms(sample.vm)
        yield _alerts(self._source.standing)
        yield _messages(self._source.messages)


def _host(sample: Sample) -> Iterator[Metric]:
    for name, help_text, value in (
        ("polydev_host_cpu_percent", "Share of all cores at work", sample.cpu),
        ("polydev_host_memory_percent", "Memory that is not available", sample.memory),
        ("polydev_host_temperature_celsius", "Hottest sensor", sample.temperature),
        ("polydev_host_uptime_seconds", "Since the host's start", sample.uptime),
    ):
        if value is not None:
            yield GaugeMetricFamily(name, help_text, value=value)
    yield _gauge("polydev_host_disk_percent", "Of each filesystem", "mount", sample.disk)
    minutes = dict(zip(("1", "5", "15"), sample.load_average or (), strict=False))
    yield _gauge("polydev_host_load_average", "Over minutes", "minutes", minutes)
    yield _counter("polydev_host_received_bytes", "Since up", "interface", sample.rx_bytes)
    yield _counter("polydev_host_sent_bytes", "Since up", "interface", sample.tx_bytes)


def _counts(sample: Sample) -> Iterator[Metric]:
    if sample.slots is None:  # the database did not answer
        return
    yield GaugeMetricFamily("polydev_slots", "Declared", value=sample.slots.total)
    yield GaugeMetricFamily("polydev_slots_held", "Held by a VM", value=sample.slots.held)
    pooled = sample.slots.pooled
    yield GaugeMetricFamily("polydev_slots_pooled", "Held by a VM of the pool", value=pooled)
    primed = sample.slots.primed
    yield GaugeMetricFamily("polydev_slots_primed", "Held by a VM that is primed", value=primed)
    yield _gauge("polydev_sessions", "Live sessions", "state", sample.sessions)


def _vms(samples: list[VmSample]) -> Iterator[Metric]:
    # By slot, of which there are few: ids of VMs would make ever more series.
    for name, help_text, member in VM_GAUGES:
        yield _gauge(name, help_text, "slot", _by_slot(samples, member))
    for name, help_text, member in VM_COUNTERS:
        yield _counter(name, help_text, "slot", _by_slot(samples, member))


def _by_slot(samples: list[VmSample], member: str) -> dict[str, float]:
    found = {str(each.slot): getattr(each, member) for each in samples}
    return {slot: value for slot, value in found.items() if value is not None}


def _alerts(standing: Iterable[Alert]) -> Metric:
    family = GaugeMetricFamily(
        "polydev_alerts_standing", "Alerts that stand", labels=["rule", "severity"]
    )
    for labels, count in Counter((each.rule, each.severity) for each in standing).items():
        family.add_metric(labels, count)
    return family


def _messages(counts: Mapping[tuple[str, SendResult], int]) -> Metric:
    family = CounterMetricFamily(
        "polydev_alert_messages", "Messages about alerts", labels=["service", "result"]
    )
    for labels, count in counts.items():
        family.add_metric(labels, count)
    return family


def _gauge(name: str, help_text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, help_text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _counter(name: str, help_text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, help_text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family

"""Metrics of VMs and of the driver, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# From a resumed clone to a boot without KVM on a busy host.
BOOT_BUCKETS_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)


class MachineMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.leading = Gauge(
            "polydev_driver_leading", "1 in the process that drives the VMs", registry=registry
        )
        self.held = Gauge(
            "polydev_vms", "VMs that hold a slot, by state", ["state"], registry=registry
        )
        self.pool = Gauge(
            "polydev_pool_vms",
            "VMs that wait for a session, by whether they are primed",
            ["state"],
            registry=registry,
        )
        self.booted = Histogram(
            "polydev_vm_boot_seconds",
            "From a VM's start until it was ready",
            buckets=BOOT_BUCKETS_SECONDS,
            registry=registry,
        )
        self.failed = Counter(
            "polydev_vm_failures",
            "VMs that failed, by their state before",
            ["state"],
            registry=registry,
        )
        self.cleaned_up = Counter(
            "polydev_reconciled",
            "Things set right that no VM's own life leaves behind",
            registry=registry,
        )

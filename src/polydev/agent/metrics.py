"""`GET /metrics` in Prometheus's text form, from a health reply and two files of /proc.

prometheus_client is imported with the first request: in an emulated guest that takes half a second,
several times the agent's own start, and most VMs are never scraped.
"""

from __future__ import annotations

import sys

from polydev.agent.vm_facts import read_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from polydev.agent.reply_types import HealthReply
    from polydev.agent.settings import AgentSettings

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STAGES = ("kernel", "init", "network", "services", "ready")
LOAD_MINUTES = ("1", "5", "15")


def memory_bytes(meminfo: str) -> dict[str, int]:
    """Return the values of /proc/meminfo that have a unit, which is always KiB."""
    rows = [line.split() for line in meminfo.splitlines()]
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if row[2:] == ["kB"]}


def load_averages(loadavg: str) -> dict[str, float]:
    """Return the averages of /proc/loadavg by minutes; none if it cannot be read."""
    return dict(zip(LOAD_MINUTES, map(float, loadavg.split()[:3]), strict=False))


def metrics_text(health: HealthReply, settings: AgentSettings) -> str:
    """Return all metrics of this VM. Raises ImportError if prometheus_client is missing."""
    _make_importable(settings.python_packages)
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    _add_health(registry, health)
    _add_machine(registry, settings.proc)
    return generate_latest(registry).decode()


def _make_importable(python_packages: str) -> None:
    """Add Debian's packages to the import path, which `python3 -S` leaves out."""
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        if python_packages not in sys.path:
            sys.path.append(python_packages)


def _add_health(registry: CollectorRegistry, health: HealthReply) -> None:
    from prometheus_client import Enum, Gauge, Info

    Gauge("polydev_agent_up", "The agent answers", registry=registry).set(1)
    Enum(
        "polydev_boot_stage", "Stage of the boot under way", states=STAGES, registry=registry
    ).state(health["stage"])
    component_up = Gauge(
        "polydev_component_up", "This part of the desktop works", ["component"], registry=registry
    )
    for name, component in health["components"].items():
        component_up.labels(name).set(component["ok"])
    service_active = Gauge(
        "polydev_service_active", "This systemd unit is active", ["unit"], registry=registry
    )
    for unit, service in health["services"].items():
        service_active.labels(unit).set(service["active"] == "active")
    Gauge("polydev_uptime_seconds", "Time since the kernel started", registry=registry).set(
        health["uptime_seconds"]
    )
    identity = {"digest": health["image_digest"] or "", "vm": health["vm_id"] or ""}
    Info("polydev_image", "Image that the VM runs, and the VM's id", registry=registry).info(
        identity
    )


def _add_machine(registry: CollectorRegistry, proc: str) -> None:
    from prometheus_client import Gauge

    memory = memory_bytes(read_text(f"{proc}/meminfo"))
    for which, key in (("total", "MemTotal"), ("available", "MemAvailable")):
        if key in memory:
            Gauge(f"polydev_memory_{which}_bytes", f"Memory, {which}", registry=registry).set(
                memory[key]
            )
    load = Gauge("polydev_load_average", "Load average", ["minutes"], registry=registry)
    for minutes, value in load_averages(read_text(f"{proc}/loadavg")).items():
        load.labels(minutes).set(value)

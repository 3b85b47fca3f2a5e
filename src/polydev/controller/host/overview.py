"""Overview of the host's health: what is wrong, and what to do about it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from polydev.controller.entities import Alert
from polydev.controller.health import Component, State
from polydev.controller.host.alert_hints import HINTS, NO_HINT
from polydev.controller.host.alert_rules import HOST, template_missing_observation
from polydev.controller.host.system_status import (
    NetworkHealth,
    Status,
    SystemStatus,
    percent_text,
    temperature_text,
    worst,
)
from polydev.controller.machines.hypervisor import TemplatesReport
from polydev.controller.machines.pool import PoolState

NETWORK_RULES = frozenset(("vm_network", "vm_isolation"))
STATES: Mapping[State, Status] = {
    "healthy": "healthy",
    "degraded": "warning",
    "unhealthy": "critical",
}


@dataclass(frozen=True)
class HealthFinding:
    """A problem of the host. `subject` names what in the part has it: a mount, a slot, the host."""

    part: str
    subject: str
    status: Status
    detail: str
    hint: str


@dataclass(frozen=True)
class Overview:
    """All findings. `status` is that of the worst one, or `healthy` without any."""

    status: Status
    findings: tuple[HealthFinding, ...]


def overview_of(
    system: SystemStatus,
    network: NetworkHealth,
    components: Mapping[str, Component],
    templates: TemplatesReport | None,
    pool: PoolState,
    pool_slots: int,
    standing: Sequence[Alert],
) -> Overview:
    """Return all problems, the worst first.

    An alert is left out where a current measurement reports the same: the measurement is newer.

    components  from the controller's health report, by name
    templates   None where templates are off, or cannot be read
    pool_slots  how many slots may be held before the pool leaves the rest to sessions
    """
    found = [
        *_host(system),
        *_network(network),
        *_components(components),
        *_templates(templates),
        *_pool(pool, pool_slots),
    ]
    measured = {(each.part, each.subject) for each in found}
    found += _alerts(standing, measured)
    urgency: Mapping[Status, int] = {"critical": 0, "warning": 1, "unknown": 2, "healthy": 3}
    found.sort(key=lambda each: urgency[each.status])
    status = worst(each.status for each in found) if found else "healthy"
    return Overview(status, tuple(found))


def _finding(
    part: str, status: Status, detail: str, hint: str = "", subject: str = HOST
) -> HealthFinding:
    hint = hint or HINTS.get(part, NO_HINT)
    return HealthFinding(part, subject, status, detail, hint.replace("MOUNT", subject))


def _host(system: SystemStatus) -> Iterator[HealthFinding]:
    cpu, memory, heat = system.cpu, system.memory, system.temperature
    if cpu.status != "healthy":
        yield _finding("cpu", cpu.status, cpu.detail or percent_text("CPU", cpu.usage))
    if memory.status != "healthy":
        detail = memory.detail or percent_text("memory", memory.percent)
        yield _finding("memory", memory.status, detail)
    for disk in system.disk:
        if disk.status != "healthy":
            name = f"disk {disk.mount}"
            detail = f"{name} {disk.detail}" if disk.detail else percent_text(name, disk.percent)
            yield _finding("disk", disk.status, detail, subject=disk.mount)
    if system.network.status != "healthy":
        yield _finding("network", system.network.status, system.network.detail or "")
    if heat and heat.status != "healthy" and heat.current is not None and heat.critical is not None:
        yield _finding("temperature", heat.status, temperature_text(heat.current, heat.critical))
    for part in ("disk", "temperature"):  # the others are reported above
        if part in system.unavailable:
            yield _finding(
                part, "unknown", f"{part} cannot be measured: {system.unavailable[part]}"
            )


def _network(network: NetworkHealth) -> Iterator[HealthFinding]:
    for check in network.checks:
        if check.status != "healthy":
            yield _finding(check.name, check.status, check.detail, check.hint or "")


def _components(components: Mapping[str, Component]) -> Iterator[HealthFinding]:
    for name, component in components.items():
        if component.status != "healthy":
            yield _finding(name, STATES[component.status], component.detail)


def _templates(report: TemplatesReport | None) -> Iterator[HealthFinding]:
    seen = template_missing_observation(report)
    if seen.raises:
        yield _finding("template_missing", seen.raises, seen.message)


def _pool(pool: PoolState, pool_slots: int) -> Iterator[HealthFinding]:
    """Yield that the pool is empty although it has room. A full host has its own alert."""
    can_be = pool.origin is not None and pool.origin.template and len(pool.held) < pool_slots
    if pool.size and can_be and not pool.primed and not pool.priming and pool.step.action != "add":
        yield _finding("pool", "warning", f"the pool is empty: {pool.step.why}")


def _alerts(standing: Iterable[Alert], measured: set[tuple[str, str]]) -> Iterator[HealthFinding]:
    network_is_measured = ("vm_network", HOST) in measured
    for alert in standing:
        if (alert.rule, alert.subject) in measured:
            continue
        if alert.rule in NETWORK_RULES and network_is_measured:
            continue
        yield _finding(alert.rule, alert.severity, alert.message, subject=alert.subject)

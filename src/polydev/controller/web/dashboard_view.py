"""The dashboard's figures in words: a snapshot of the host to what its templates show. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from polydev.controller.host.network_health import SLOT_PORT_PREFIX
from polydev.controller.host.processes import Process
from polydev.controller.host.shapes import Interface, Status, System
from polydev.controller.host.snapshot import Snapshot
from polydev.controller.web.figures import (
    NOTHING,
    duration_text,
    exact_percent_text,
    rate_text,
    size_text,
    time_attribute,
)
from polydev.controller.web.texts import text

# The class of a colour, which never stands alone: a word says the same.
COLOURS: Mapping[Status, str] = {
    "healthy": "good",
    "warning": "warn",
    "critical": "bad",
    "unknown": "unknown",
}
STARTING = ("vm_creating", "vm_starting")


@dataclass(frozen=True)
class Bar:
    """A share of something. `word` says what the colour says; `figures` says of how much."""

    label: str
    percent: float | None
    colour: str
    word: str
    value: str
    figures: str


@dataclass(frozen=True)
class InterfaceRow:
    """An interface: `colour` and `state` say whether it is up."""

    name: str
    colour: str
    state: str
    received: str
    sent: str


@dataclass(frozen=True)
class CheckRow:
    """A check of the network; a finding says what is not well."""

    colour: str
    state: str
    name: str


@dataclass(frozen=True)
class FindingRow:
    """What is not well; `severity` says what the colour says."""

    colour: str
    severity: str
    detail: str
    hint: str


@dataclass(frozen=True)
class AlertRow:
    colour: str
    severity: str
    message: str
    since: str
    at: str


@dataclass(frozen=True)
class ProcessRow:
    name: str
    owner: str
    cpu: str
    memory: str


@dataclass(frozen=True)
class View:
    """All that the parts of the dashboard show, the processes apart.

    banner  what is above the critical limit, in words; empty where nothing is
    """

    colour: str
    headline: str
    banner: str
    at: str
    findings: Sequence[FindingRow]
    bars: Sequence[Bar]
    interfaces: Sequence[InterfaceRow]
    slot_ports: str
    checks: Sequence[CheckRow]
    alerts: Sequence[AlertRow]
    slots: Bar
    pool: str
    pool_detail: str
    sessions: Sequence[tuple[str, int]]
    uptime: str
    load: str


def view_of(snapshot: Snapshot, critical_percent: float) -> View:
    """Return what the dashboard shows of a snapshot."""
    found, pool = snapshot.overview, snapshot.pool
    bars = bars_of(snapshot.system)
    own = [
        each
        for each in snapshot.system.network.interfaces
        if not each.name.startswith(SLOT_PORT_PREFIX) and each.name != "lo"
    ]
    return View(
        colour=COLOURS[found.status],
        headline=headline(found.status, len(found.findings)),
        banner=banner(bars, critical_percent),
        at=time_attribute(snapshot.at),
        findings=[
            FindingRow(COLOURS[each.status], severity_word(each.status), each.detail, each.hint)
            for each in found.findings
        ],
        bars=bars,
        interfaces=[_interface(each) for each in own],
        slot_ports=_slot_ports(snapshot.system.network.interfaces),
        checks=[
            CheckRow(
                COLOURS[each.status],
                severity_word(each.status),
                each.name.replace("_", " "),
            )
            for each in snapshot.network.checks
        ],
        alerts=[
            AlertRow(
                COLOURS[each.severity],
                severity_word(each.severity),
                each.message,
                duration_text((snapshot.at - each.raised_at).total_seconds()),
                time_attribute(each.raised_at),
            )
            for each in snapshot.standing
        ],
        slots=_slots(len(pool.held), snapshot.slots),
        pool=text("dashboard.pool.primed", primed=pool.primed, size=pool.size) if pool.size else "",
        pool_detail=pool.step.why,
        sessions=_sessions(snapshot),
        uptime=duration_text(snapshot.system.uptime),
        load=" ".join(f"{each:.2f}" for each in snapshot.system.load_average or ()) or NOTHING,
    )


def headline(status: Status, count: int) -> str:
    if count == 0:
        return text("dashboard.status.well")
    if status == "unknown":
        return text("dashboard.status.unknown", count=count)
    return (
        text("dashboard.status.one")
        if count == 1
        else text("dashboard.status.several", count=count)
    )


def severity_word(severity: Status) -> str:
    return {
        "healthy": text("dashboard.severity.healthy"),
        "warning": text("dashboard.severity.warning"),
        "critical": text("dashboard.severity.critical"),
        "unknown": text("dashboard.severity.unknown"),
    }[severity]


def level_word(status: Status) -> str:
    return {
        "healthy": text("dashboard.level.healthy"),
        "warning": text("dashboard.level.warning"),
        "critical": text("dashboard.level.critical"),
        "unknown": text("dashboard.level.unknown"),
    }[status]


def banner(bars: Sequence[Bar], critical_percent: float) -> str:
    """Return which shares are above the critical limit, in words."""
    above = [f"{each.label} {each.value}" for each in bars if each.colour == "bad"]
    if not above:
        return ""
    return text("dashboard.banner", limit=f"{critical_percent:g}", parts=", ".join(above))


def bars_of(system: System) -> list[Bar]:
    """Return CPU, memory, each disk and the temperature, if there is a sensor."""
    cpu, memory, heat = system.cpu, system.memory, system.temperature
    cores = text("dashboard.bars.cores", cores=cpu.cores or "?")
    bars = [
        _bar(text("dashboard.bars.cpu"), cpu.usage, cpu.status, cpu.detail or cores),
        _bar(
            text("dashboard.bars.memory"),
            memory.percent,
            memory.status,
            memory.detail or _used(memory.used, memory.total),
        ),
    ]
    for disk in system.disk:
        label = text("dashboard.bars.disk", mount=disk.mount)
        figures = disk.detail or _used(disk.used, disk.size)
        bars.append(_bar(label, disk.percent, disk.status, figures))
    if heat is not None and heat.current is not None:
        bars.append(_heat(heat.current, heat.critical, heat.status))
    return bars


def _bar(label: str, percent: float | None, status: Status, figures: str) -> Bar:
    return Bar(
        label, percent, COLOURS[status], level_word(status), exact_percent_text(percent), figures
    )


def _used(used: int | None, total: int | None) -> str:
    return text("dashboard.bars.used", used=size_text(used), total=size_text(total))


def _heat(celsius: float, critical: float | None, status: Status) -> Bar:
    """Return the temperature as a share of its critical value: red as soon as an alert is due."""
    colour = "good" if status == "healthy" else "bad"
    percent = round(min(100 * celsius / critical, 100.0), 1) if critical else None
    figures = (
        text("dashboard.bars.critical", celsius=f"{critical:g}")
        if critical
        else text("dashboard.bars.no_critical")
    )
    label = text("dashboard.bars.temperature")
    return Bar(label, percent, colour, level_word(status), f"{celsius:g} °C", figures)


def _interface(each: Interface) -> InterfaceRow:
    return InterfaceRow(
        each.name,
        "good" if each.status == "up" else "unknown",
        text("dashboard.network.up") if each.status == "up" else text("dashboard.network.down"),
        rate_text(each.rx_bytes_per_second),
        rate_text(each.tx_bytes_per_second),
    )


def _slot_ports(interfaces: Sequence[Interface]) -> str:
    ports = [each for each in interfaces if each.name.startswith(SLOT_PORT_PREFIX)]
    up = sum(each.status == "up" for each in ports)
    return text("dashboard.network.slots", up=up, total=len(ports)) if ports else ""


def _slots(held: int, total: int) -> Bar:
    percent = round(100 * held / total, 1) if total else None
    is_full = total > 0 and held >= total
    word = text("dashboard.pool.full") if is_full else text("dashboard.pool.free")
    value = text("dashboard.pool.slots", held=held, total=total)
    colour = "warn" if is_full else "good"
    return Bar(text("dashboard.pool.slots_label"), percent, colour, word, value, "")


def _sessions(snapshot: Snapshot) -> list[tuple[str, int]]:
    starting = sum(each.state in STARTING for each in snapshot.live)
    logged_in = sum(each.state == "authenticated" for each in snapshot.live)
    waiting = len(snapshot.live) - starting - logged_in
    return [
        (text("dashboard.sessions.starting"), starting),
        (text("dashboard.sessions.ready"), waiting),
        (text("dashboard.sessions.logged_in"), logged_in),
    ]


def process_rows(found: Sequence[Process]) -> list[ProcessRow]:
    """Return processes with what they belong to, in words."""
    return [
        ProcessRow(
            each.name,
            _owner(each),
            exact_percent_text(each.cpu_percent),
            size_text(each.memory_bytes),
        )
        for each in found
    ]


def _owner(process: Process) -> str:
    if process.belongs_to == "vm":
        return text("dashboard.processes.vm", slot=process.slot)
    if process.belongs_to == "controller":
        return text("dashboard.processes.controller")
    return process.unit or text("dashboard.processes.user", user=process.user or NOTHING)

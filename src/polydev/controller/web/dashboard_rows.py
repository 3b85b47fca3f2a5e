"""Rows of the dashboard's lists and tables; pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from polydev.controller.entities import Alert, Session
from polydev.controller.host.network_checks import SLOT_PORT_PREFIX
from polydev.controller.host.overview import HealthFinding
from polydev.controller.host.processes import Process
from polydev.controller.host.system_status import InterfaceStatus, NetworkCheck, Status
from polydev.controller.web.css_classes import LEVELS, Level
from polydev.controller.web.formatting import (
    NOTHING,
    duration_text,
    exact_percent_text,
    rate_text,
    size_text,
    time_attribute,
)
from polydev.controller.web.texts import text

STARTING = ("vm_creating", "vm_starting")


@dataclass(frozen=True)
class InterfaceRow:
    """An interface: `level` and `state` say whether it is up."""

    name: str
    level: Level
    state: str
    received: str
    sent: str


@dataclass(frozen=True)
class CheckRow:
    """A check of the network; findings have the details of failed ones."""

    level: Level
    state: str
    name: str


@dataclass(frozen=True)
class FindingRow:
    """A problem of the host; `severity` says the same as its colour."""

    level: Level
    severity: str
    detail: str
    hint: str


@dataclass(frozen=True)
class AlertRow:
    level: Level
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


def finding_rows(found: Iterable[HealthFinding]) -> list[FindingRow]:
    return [
        FindingRow(LEVELS[each.status], _severity(each.status), each.detail, each.hint)
        for each in found
    ]


def check_rows(checks: Iterable[NetworkCheck]) -> list[CheckRow]:
    return [
        CheckRow(LEVELS[each.status], _severity(each.status), each.name.replace("_", " "))
        for each in checks
    ]


def alert_rows(standing: Iterable[Alert], at: datetime) -> list[AlertRow]:
    return [
        AlertRow(
            LEVELS[each.severity],
            _severity(each.severity),
            each.message,
            duration_text((at - each.raised_at).total_seconds()),
            time_attribute(each.raised_at),
        )
        for each in standing
    ]


def _severity(status: Status) -> str:
    return text(f"dashboard.severity.{status}")


def interface_rows(interfaces: Iterable[InterfaceStatus]) -> list[InterfaceRow]:
    """Return all interfaces except loopback and those of VMs, which `slot_ports` counts."""
    return [
        _interface(each)
        for each in interfaces
        if not each.name.startswith(SLOT_PORT_PREFIX) and each.name != "lo"
    ]


def _interface(each: InterfaceStatus) -> InterfaceRow:
    return InterfaceRow(
        each.name,
        "good" if each.status == "up" else "unknown",
        text("dashboard.network.up") if each.status == "up" else text("dashboard.network.down"),
        rate_text(each.rx_bytes_per_second),
        rate_text(each.tx_bytes_per_second),
    )


def slot_ports(interfaces: Iterable[InterfaceStatus]) -> str:
    """Return the number of VM interfaces that are up, as text; empty without any."""
    ports = [each for each in interfaces if each.name.startswith(SLOT_PORT_PREFIX)]
    up = sum(each.status == "up" for each in ports)
    return text("dashboard.network.slots", up=up, total=len(ports)) if ports else ""


def session_counts(live: Sequence[Session]) -> list[tuple[str, int]]:
    """Return the number of sessions by stage."""
    starting = sum(each.state in STARTING for each in live)
    logged_in = sum(each.state == "authenticated" for each in live)
    waiting = len(live) - starting - logged_in
    return [
        (text("dashboard.sessions.starting"), starting),
        (text("dashboard.sessions.ready"), waiting),
        (text("dashboard.sessions.logged_in"), logged_in),
    ]


def process_rows(found: Sequence[Process]) -> list[ProcessRow]:
    """Return rows of processes, with what each belongs to."""
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

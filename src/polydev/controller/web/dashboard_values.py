"""Turn a snapshot of the host into the values of the dashboard's templates. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polydev.controller.host.host_state import HostState
from polydev.controller.host.system_status import Status
from polydev.controller.machines.pool import PoolState
from polydev.controller.web.css_classes import LEVELS, Level
from polydev.controller.web.dashboard_bars import Bar, bars_of, slots_bar
from polydev.controller.web.dashboard_rows import (
    AlertRow,
    CheckRow,
    FindingRow,
    InterfaceRow,
    alert_rows,
    check_rows,
    finding_rows,
    interface_rows,
    session_counts,
    slot_ports,
)
from polydev.controller.web.formatting import NOTHING, duration_text
from polydev.controller.web.texts import text


@dataclass(frozen=True)
class View:
    """The values of all parts of the dashboard except the processes.

    banner  what is above the critical limit; empty if nothing is
    """

    level: Level
    headline: str
    banner: str
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


def view_of(snapshot: HostState, critical_percent: float) -> View:
    """Return the values for a snapshot."""
    found, pool, system = snapshot.overview, snapshot.pool, snapshot.system
    bars = bars_of(system)
    return View(
        level=LEVELS[found.status],
        headline=headline(found.status, len(found.findings)),
        banner=banner(bars, critical_percent),
        findings=finding_rows(found.findings),
        bars=bars,
        interfaces=interface_rows(system.network.interfaces),
        slot_ports=slot_ports(system.network.interfaces),
        checks=check_rows(snapshot.network.checks),
        alerts=alert_rows(snapshot.standing, snapshot.at),
        slots=slots_bar(len(pool.held), snapshot.slots),
        pool=_pool(pool),
        pool_detail=pool.step.why,
        sessions=session_counts(snapshot.live),
        uptime=duration_text(system.uptime),
        load=" ".join(f"{each:.2f}" for each in system.load_average or ()) or NOTHING,
    )


def _pool(pool: PoolState) -> str:
    if not pool.size:
        return ""
    return text("dashboard.pool.primed", primed=pool.primed, size=pool.size)


def headline(status: Status, count: int) -> str:
    if count == 0:
        return text("dashboard.status.well")
    is_unknown = status == "unknown"
    if count == 1:
        return text("dashboard.status.unknown_one") if is_unknown else text("dashboard.status.one")
    if is_unknown:
        return text("dashboard.status.unknown", count=count)
    return text("dashboard.status.several", count=count)


def banner(bars: Sequence[Bar], critical_percent: float) -> str:
    """Return which bars are above the critical limit, as text."""
    above = [f"{each.label} {each.value}" for each in bars if each.level == "bad"]
    if not above:
        return ""
    return text("dashboard.banner", limit=f"{critical_percent:g}", parts=", ".join(above))

"""The host's overview: its findings, their severity, and that each is reported once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any, get_args

import pytest

from polydev.controller.entities import Alert, Severity
from polydev.controller.health import Component
from polydev.controller.host.alert_hints import HINTS
from polydev.controller.host.alert_rules import Rule
from polydev.controller.host.overview import HealthFinding, Overview, overview_of
from polydev.controller.host.system_status import (
    CpuStatus,
    DiskStatus,
    MemoryStatus,
    NetworkCheck,
    NetworkHealth,
    NetworkStatus,
    SystemStatus,
    TemperatureStatus,
)
from polydev.controller.machines.hypervisor import Origin, TemplatesReport
from polydev.controller.machines.pool import PoolState, PoolStep

AT = datetime(2026, 11, 21, tzinfo=timezone.utc)
ORIGIN = Origin("4f" * 32, "7e" * 32)
FULL = PoolState(0, (), ORIGIN, PoolStep("wait", "the pool is full"))
WELL: dict[str, Any] = {
    "status": "healthy",
    "cpu": CpuStatus(status="healthy", usage=5),
    "memory": MemoryStatus(status="healthy", percent=5),
    "disk": [DiskStatus(status="healthy", filesystem="d", mount="/", percent=5)],
    "network": NetworkStatus(status="healthy", interfaces=[]),
    "uptime": 1.0,
    "load_average": None,
}


def overview(
    system: dict[str, Any] | None = None,
    checks: Sequence[NetworkCheck] = (),
    components: dict[str, Component] | None = None,
    templates: TemplatesReport | None = None,
    pool: PoolState = FULL,
    standing: Sequence[Alert] = (),
) -> Overview:
    """Return the overview of a host that is healthy except for these values."""
    network = NetworkHealth(status="healthy", checks=list(checks))
    figures = SystemStatus(**{**WELL, **(system or {})})
    return overview_of(figures, network, components or {}, templates, pool, 7, standing)


def alert(rule: str, subject: str = "host", severity: Severity = "warning") -> Alert:
    return Alert(1, rule, subject, severity, f"{rule} of {subject}", None, AT, None)


def only(found: Overview) -> HealthFinding:
    (finding,) = found.findings
    assert found.status == finding.status
    return finding


def test_healthy_host_has_no_findings() -> None:
    assert overview() == Overview("healthy", ())


@pytest.mark.parametrize(
    ("changed", "part", "detail"),
    [
        ({"cpu": CpuStatus(status="warning", usage=75.5)}, "cpu", "CPU is at 75.5 %"),
        ({"memory": MemoryStatus(status="critical", percent=95)}, "memory", "memory is at 95 %"),
        ({"cpu": CpuStatus(status="unknown", detail="no answer")}, "cpu", "no answer"),
        (
            {"network": NetworkStatus(status="critical", detail="all is down", interfaces=[])},
            "network",
            "all is down",
        ),
        (
            {"temperature": TemperatureStatus(status="warning", current=85, critical=100)},
            "temperature",
            "temperature is at 85 °C, critical from 100 °C",
        ),
        (
            {"disk": [], "unavailable": {"disk": "no answer"}},
            "disk",
            "disk cannot be measured: no answer",
        ),
    ],
)
def test_each_bad_part_of_the_host_is_a_finding(
    changed: dict[str, Any], part: str, detail: str
) -> None:
    finding = only(overview(changed))
    assert (finding.part, finding.detail) == (part, detail)
    assert finding.hint


def test_disk_hint_names_the_mount() -> None:
    full = DiskStatus(status="critical", filesystem="d", mount="/data", percent=95)
    finding = only(overview({"disk": [full]}))
    assert (finding.subject, finding.detail) == ("/data", "disk /data is at 95 %")
    assert "du -xhd1 /data" in finding.hint


def test_network_checks_keep_their_own_hint() -> None:
    check = NetworkCheck(
        name="bridge", status="critical", detail="it is down", hint="ip link set up"
    )
    assert only(overview(checks=[check])).hint == "ip link set up"


def test_degraded_component_is_a_warning() -> None:
    degraded = Component(status="degraded", detail="no golden image")
    finding = only(overview(components={"image_store": degraded}))
    assert (finding.part, finding.status) == ("image_store", "warning")


class TestAlerts:
    def test_alert_without_a_measurement_is_a_finding(self) -> None:
        finding = only(overview(standing=[alert("deploy_failed", "20261121_101500-07af4b7")]))
        assert finding.subject == "20261121_101500-07af4b7"
        assert "./inv deployments" in finding.hint

    def test_measured_alert_is_reported_once(self) -> None:
        busy = {"cpu": CpuStatus(status="warning", usage=80)}
        found = overview(busy, standing=[alert("cpu", severity="critical")])
        assert only(found).detail == "CPU is at 80 %"

    def test_alert_of_another_disk_is_reported_too(self) -> None:
        full = DiskStatus(status="critical", filesystem="d", mount="/data", percent=95)
        found = overview({"disk": [full]}, standing=[alert("disk", "/")])
        assert [each.subject for each in found.findings] == ["/data", "/"]

    def test_standing_alert_of_a_healthy_part_is_reported(self) -> None:
        assert only(overview(standing=[alert("memory")])).detail == "memory of host"

    def test_vm_network_is_reported_by_its_check_only(self) -> None:
        check = NetworkCheck(
            name="vm_network", status="critical", detail="slot 2 is open", hint="mend"
        )
        found = overview(
            checks=[check], standing=[alert("vm_isolation", "slot 2"), alert("vm_network", "x")]
        )
        assert only(found).detail == "slot 2 is open"

    def test_every_rule_has_a_hint(self) -> None:
        assert set(get_args(Rule)) <= set(HINTS)


class TestTemplatesAndPool:
    MISSING = TemplatesReport(
        "b" * 64, "8f" * 32, Origin("b" * 64, because="x"), (), failure="its clone is not ready"
    )

    def test_failed_template_is_reported_once(self) -> None:
        found = overview(templates=self.MISSING, standing=[alert("template_missing")])
        assert "its clone is not ready" in only(found).detail

    def test_template_in_progress_is_no_finding(self) -> None:
        made = TemplatesReport(
            "b" * 64, "8f" * 32, Origin("b" * 64, because="x"), (), step="boot stage network"
        )
        assert overview(templates=made).findings == ()

    @pytest.mark.parametrize(
        ("size", "origin", "step", "is_told"),
        [
            (2, ORIGIN, PoolStep("wait", "the host has 100 MiB of memory left"), True),
            (2, ORIGIN, PoolStep("add", "there is room for one more"), False),
            (0, ORIGIN, PoolStep("wait", "the pool is full"), False),
            (2, Origin("4f" * 32, because="x"), PoolStep("wait", "there is no template"), False),
        ],
    )
    def test_empty_pool_is_a_finding_only_if_it_stays_empty(
        self, size: int, origin: Origin, step: PoolStep, is_told: bool
    ) -> None:
        found = overview(pool=PoolState(size, (), origin, step)).findings
        assert [each.part for each in found] == (["pool"] if is_told else [])


def test_worst_finding_comes_first() -> None:
    found = overview(
        {
            "cpu": CpuStatus(status="unknown", detail="x"),
            "memory": MemoryStatus(status="critical", percent=99),
        },
        standing=[alert("no_slots")],
    )
    assert [each.status for each in found.findings] == ["critical", "warning", "unknown"]
    assert found.status == "critical"

"""Raising and clearing alerts: limits, hysteresis, delays, and conditions that are unknown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from polydev.controller.entities import Severity, Vm
from polydev.controller.host.alert_changes import AlertChange, Key, PendingChange, changes_due
from polydev.controller.host.alert_checker import message_of
from polydev.controller.host.alert_rules import (
    HOST,
    Observation,
    Observed,
    Rule,
    Unknown,
    all_clear,
    failed_boots_observation,
    no_slots_observation,
    not_resumed_observation,
    observe_certificate,
    observe_deployments,
    observe_sample,
    observe_template,
    observe_webhooks,
    percent_observation,
    temperature_observation,
    unhealthy_vms_observation,
)
from polydev.controller.host.deployments import deployments, newest_failed
from polydev.controller.host.sample import Sample, SlotCounts, Workload
from polydev.controller.machines.hypervisor import Origin, TemplatesReport
from polydev.controller.settings import AlertSettings, WebhookEndpoint, WebhookSettings
from polydev.controller.store.webhook_log import Backlog

LIMITS = AlertSettings()  # 70, 90, 5 below, for 30 s
START = datetime(2026, 11, 21, tzinfo=timezone.utc)


class Watch:
    """The rules over time, with standing and pending alerts."""

    def __init__(self, limits: AlertSettings = LIMITS) -> None:
        self.limits = limits
        self.standing: dict[Key, Severity] = {}
        self.pending: dict[Key, PendingChange] = {}
        self.at = START

    def see(self, seen: Observed, seconds: float = 10) -> list[AlertChange]:
        self.at += timedelta(seconds=seconds)
        changes, self.pending = changes_due(self.standing, self.pending, seen, self.at, self.limits)
        for change in changes:
            if change.severity is None:
                del self.standing[change.rule, change.subject]
            else:
                self.standing[change.rule, change.subject] = change.severity
        return changes

    def cpu(self, *values: float | None) -> list[Severity | None]:
        """Return the standing severity after each value, ten seconds apart."""
        found = []
        for value in values:
            self.see({"cpu": [percent_observation("CPU", HOST, value, self.limits)]})
            found.append(self.standing.get(("cpu", HOST)))
        return found


class TestPercent:
    def test_alert_is_raised_only_after_it_lasted(self) -> None:
        assert Watch().cpu(75, 75, 75, 75) == [None, None, None, "warning"]

    def test_one_low_value_restarts_the_delay(self) -> None:
        assert Watch().cpu(75, 75, 75, 60, 75, 75, 75, 75)[-2:] == [None, "warning"]

    @pytest.mark.parametrize("value", [69.9, 0])
    def test_values_below_the_limit_raise_nothing(self, value: float) -> None:
        assert Watch().cpu(*[value] * 9)[-1] is None

    @pytest.mark.parametrize(
        ("value", "severity"), [(70, "warning"), (90, "warning"), (90.1, "critical")]
    )
    def test_severity_by_percent(self, value: float, severity: Severity) -> None:
        assert Watch().cpu(*[value] * 4)[-1] == severity

    def test_brief_critical_values_raise_a_warning(self) -> None:
        assert Watch().cpu(75, 95, 75, 95, 95, 95) == [
            None,
            None,
            None,
            "warning",
            "warning",
            "warning",
        ]

    @pytest.mark.parametrize(
        ("stands", "values", "told"),
        [
            (None, (75, 95, 76, 97), "CPU is at 76 %"),
            ("critical", (80, 82, 55.6, 55.6), "CPU is at 82 %"),
            ("critical", (66, 66, 66, 66), "CPU is at 66 %; the alert is cleared below 65 %"),
            ("warning", (60, 50, 40, 30), "CPU is at 30 %"),
        ],
    )
    def test_message_shows_a_value_of_its_severity(
        self, stands: Severity | None, values: tuple[float, ...], told: str
    ) -> None:
        watch = Watch()
        if stands:
            watch.standing["cpu", HOST] = stands
        for value in values:
            seen = percent_observation("CPU", HOST, value, LIMITS)
            changes = watch.see({"cpu": [seen]})
        (change,) = changes
        assert change.message == told
        assert change.value == float(told.split()[3])

    def test_warning_becomes_critical(self) -> None:
        watch = Watch()
        watch.cpu(*[75] * 4)
        assert watch.cpu(95, 95, 95, 95) == ["warning", "warning", "warning", "critical"]

    def test_alert_stays_within_the_hysteresis(self) -> None:
        watch = Watch()
        watch.cpu(*[95] * 4)
        assert watch.cpu(*[86] * 9)[-1] == "critical"
        assert watch.cpu(*[84] * 4)[-1] == "warning"
        assert watch.cpu(*[66] * 9)[-1] == "warning"
        assert watch.cpu(*[64] * 4) == ["warning", "warning", "warning", None]

    def test_alert_does_not_flap_around_a_limit(self) -> None:
        watch = Watch()
        watch.cpu(*[71] * 4)
        assert set(watch.cpu(*[69, 71] * 20)) == {"warning"}

    def test_missing_value_changes_nothing(self) -> None:
        watch = Watch()
        assert watch.cpu(*[None] * 9)[-1] is None
        watch.cpu(*[95] * 4)
        assert set(watch.cpu(*[None] * 9)) == {"critical"}

    def test_unknown_observation_changes_nothing(self) -> None:
        watch = Watch()
        watch.cpu(*[95] * 4)
        for _ in range(9):
            assert watch.see({"cpu": Unknown("no answer")}) == []

    def test_alert_is_raised_at_once_without_a_delay(self) -> None:
        assert Watch(AlertSettings(for_seconds=0)).cpu(75, 10) == ["warning", None]

    def test_alert_from_before_a_restart_is_not_raised_again(self) -> None:
        watch = Watch()
        watch.standing["cpu", HOST] = "critical"
        assert watch.see({"cpu": [percent_observation("CPU", HOST, 95, LIMITS)]}) == []
        assert watch.pending == {}


class TestTemperature:
    """A sensor with the critical value 100 °C: a warning above 80 °C, 5 °C of hysteresis."""

    def after(self, *readings: tuple[float | None, float | None]) -> list[Severity | None]:
        """Return the standing severity after each reading, ten seconds apart."""
        watch, found = Watch(), []
        for celsius, critical in readings:
            watch.see({"temperature": [temperature_observation(celsius, critical, LIMITS)]})
            found.append(watch.standing.get(("temperature", HOST)))
        return found

    @pytest.mark.parametrize(
        ("celsius", "severity"),
        [(80, None), (80.1, "warning"), (99.9, "warning"), (100, "critical"), (140, "critical")],
    )
    def test_severity_by_temperature(self, celsius: float, severity: Severity | None) -> None:
        assert self.after(*[(celsius, 100)] * 4)[-1] == severity

    def test_temperature_alert_is_raised_only_after_it_lasted(self) -> None:
        assert self.after(*[(90, 100)] * 4) == [None, None, None, "warning"]

    def test_temperature_alert_stays_within_the_hysteresis(self) -> None:
        hot, warm = [(101.0, 100.0)] * 4, [(75.5, 100.0)] * 9
        assert self.after(*hot, *[(96.0, 100.0)] * 9)[-1] == "critical"
        assert self.after(*hot, *[(94.0, 100.0)] * 9)[-1] == "warning"
        assert self.after(*hot, *warm)[-1] == "warning"
        assert self.after(*hot, *warm, *[(74.9, 100.0)] * 4)[-1] is None

    def test_sensor_without_a_critical_value_raises_nothing(self) -> None:
        assert self.after(*[(140, None)] * 9)[-1] is None

    def test_removed_sensor_clears_its_alert(self) -> None:
        assert self.after(*[(101, 100)] * 4, *[(None, None)] * 4)[3:] == ["critical"] * 4 + [None]

    def test_temperature_messages(self) -> None:
        assert temperature_observation(91.5, 100, LIMITS).message == (
            "temperature is at 91.5 °C, critical from 100 °C"
        )
        assert temperature_observation(78, 100, LIMITS).message.endswith(
            "; the alert is cleared at 75 °C"
        )


class TestDisks:
    def disks(self, **percent: float | None) -> Observed:
        return {
            "disk": [percent_observation(f"disk {m}", m, v, LIMITS) for m, v in percent.items()]
        }

    def test_each_disk_has_its_own_alert(self) -> None:
        watch = Watch()
        for _ in range(4):
            watch.see(self.disks(root=50, data=95))
        assert watch.standing == {("disk", "data"): "critical"}

    def test_unmounted_disk_clears_its_alert(self) -> None:
        watch = Watch()
        watch.standing["disk", "data"] = "critical"
        for _ in range(4):
            changes = watch.see(self.disks(root=50))
        assert [(each.subject, each.severity) for each in changes] == [("data", None)]
        assert changes[0].message == "filesystem data is no longer mounted"

    def test_long_mount_name_is_cut_to_fit_the_database(self) -> None:
        assert len(percent_observation("disk", "/" + "x" * 500, 1, LIMITS).subject) == 200


def test_not_resumed_alert_contains_the_last_reason() -> None:
    seen = not_resumed_observation(2, "its image has no template", LIMITS)
    assert (seen.raises, seen.keeps, seen.value) == ("warning", "warning", 2.0)
    assert seen.message.startswith("2 VMs booted in the last ")
    assert seen.message.endswith("; the last one because its image has no template")
    assert not_resumed_observation(0, "", LIMITS).raises is None


class TestTemplateMissing:
    FAILED = TemplatesReport(
        "b" * 64, "8f" * 32, Origin("b" * 64, because="x"), (), failure="its clone is not ready"
    )

    @pytest.mark.parametrize(
        ("changed", "instead"),
        [
            ({}, "VMs boot instead of being resumed: its clone is not ready"),
            (
                {"failure": None},
                "VMs boot instead of being resumed: no template is being made",
            ),
            (
                {"origin": Origin("a" * 64, "7e" * 32)},
                "VMs are still resumed from image aaaaaaaaaaaa: its clone is not ready",
            ),
        ],
    )
    def test_missing_template_of_the_golden_image_is_a_warning(
        self, changed: dict[str, Any], instead: str
    ) -> None:
        watch = Watch()
        for seconds in (0, 29):
            assert watch.see(observe_template(replace(self.FAILED, **changed)), seconds) == []
        (change,) = watch.see(observe_template(replace(self.FAILED, **changed)), 1)
        assert change.severity == "warning"
        assert change.message == f"golden image bbbbbbbbbbbb has no template, so {instead}"

    def test_template_in_progress_neither_raises_nor_clears(self) -> None:
        watch, made = Watch(), replace(self.FAILED, step="saving memory", failure=None)
        assert [watch.see(observe_template(made)) for _ in range(9)] == [[]] * 9
        watch.standing["template_missing", HOST] = "warning"
        assert [watch.see(observe_template(made)) for _ in range(9)] == [[]] * 9

    def test_template_alert_is_cleared_by_a_template_or_by_disabling(self) -> None:
        origin = Origin("b" * 64, self.FAILED.wanted)
        there, off = replace(self.FAILED, origin=origin), None
        for well, words in (
            (there, "the golden image has its template"),
            (off, "templates are off"),
        ):
            watch = Watch()
            watch.standing["template_missing", HOST] = "warning"
            changes = [each for _ in range(9) for each in watch.see(observe_template(well))]
            assert [(each.severity, each.message) for each in changes] == [(None, words)]


class TestFailedBoots:
    def severity(self, failed: int, stands: bool) -> Severity | None:
        watch = Watch()
        if stands:
            watch.standing["failed_boots", HOST] = "critical"
        watch.see({"failed_boots": [failed_boots_observation(failed, LIMITS)]})
        return watch.standing.get(("failed_boots", HOST))

    @pytest.mark.parametrize(("failed", "raised"), [(0, False), (2, False), (3, True), (9, True)])
    def test_third_failed_boot_raises_at_once(self, failed: int, raised: bool) -> None:
        assert (self.severity(failed, stands=False) == "critical") is raised

    @pytest.mark.parametrize(("failed", "stands"), [(2, True), (1, False), (0, False)])
    def test_failed_boots_alert_stays_until_fewer_than_two_are_recent(
        self, failed: int, stands: bool
    ) -> None:
        assert (self.severity(failed, stands=True) == "critical") is stands


class TestSlots:
    @pytest.mark.parametrize(
        ("total", "held", "severity"),
        [(0, 0, None), (2, 0, None), (2, 1, None), (2, 2, "warning"), (2, 3, "warning")],
    )
    def test_no_slots_severity(self, total: int, held: int, severity: Severity | None) -> None:
        assert no_slots_observation(total, held).raises == severity

    def test_slots_briefly_full_raise_nothing(self) -> None:
        watch = Watch()
        full: Observed = {"no_slots": [no_slots_observation(2, 2)]}
        free: Observed = {"no_slots": [no_slots_observation(2, 1)]}
        assert [watch.see(seen) for seen in (full, free, full, full, free, full)] == [[]] * 6


def test_unhealthy_vms_severity_and_message() -> None:
    assert unhealthy_vms_observation(0, 0, LIMITS).raises is None
    assert unhealthy_vms_observation(1, 0, LIMITS).raises == "warning"
    seen = unhealthy_vms_observation(1, 2, LIMITS)
    assert (seen.value, seen.message) == (
        3,
        "VMs failing their health checks: 1; failed in the last 15 min: 2",
    )


class TestDeployments:
    def write(self, folder: Path, number: int, **record: Any) -> str:
        name = f"20261121_10150{number}-07af4b7"
        (folder / f"{name}.json").write_text(json.dumps({"id": name, **record}))
        return name

    def test_no_failure_without_records(self, tmp_path: Path) -> None:
        assert newest_failed(tmp_path) is None
        assert newest_failed(tmp_path / "nowhere") is None

    @pytest.mark.parametrize(
        "record", ["[" * 5000, '{"number": Infinity, "status": "failed"}', "7" * 5000, "[]"]
    )
    def test_records_that_cannot_be_read_are_passed_over(self, tmp_path: Path, record: str) -> None:
        (tmp_path / "20261130_010203-abcdef.json").write_text(record)
        assert newest_failed(tmp_path) is None
        (found,) = deployments(tmp_path)
        assert found.record is None
        assert found.problem

    @pytest.mark.parametrize("status", ["failed", "rolled-back", "rollback-failed", "interrupted"])
    def test_newest_failed_deployment_is_found(self, tmp_path: Path, status: str) -> None:
        self.write(tmp_path, 1, status="succeeded", kind="deploy")
        failed = self.write(tmp_path, 2, status=status, kind="deploy")
        assert newest_failed(tmp_path) == (failed, status)

    def test_later_success_clears_a_failed_deployment(self, tmp_path: Path) -> None:
        self.write(tmp_path, 1, status="failed", kind="deploy")
        self.write(tmp_path, 2, status="succeeded", kind="rollback")
        assert newest_failed(tmp_path) is None

    def test_records_without_a_result_are_skipped(self, tmp_path: Path) -> None:
        failed = self.write(tmp_path, 1, status="failed", kind="deploy")
        self.write(tmp_path, 2, status="running", kind="deploy")
        self.write(tmp_path, 3, status="succeeded", kind="backup")
        self.write(tmp_path, 4, kind="deploy")
        (tmp_path / "20261121_101509-07af4b7.json").write_text("[1")
        (tmp_path / "20261121_101510-07af4b7.json").write_text("[1]")
        (tmp_path / "notes.json").write_text('{"status": "failed"}')
        assert newest_failed(tmp_path) == (failed, "failed")

    def test_each_failed_deployment_is_its_own_alert(self) -> None:
        watch = Watch()
        assert [each.severity for each in watch.see(observe_deployments(("one", "failed")))] == [
            "warning"
        ]
        changes = watch.see(observe_deployments(("two", "rollback-failed")))
        assert {each.subject: each.severity for each in changes} == {"two": "critical", "one": None}
        assert [each.severity for each in watch.see(observe_deployments(None))] == [None]


@pytest.mark.parametrize(
    ("days", "severity"),
    [(15, None), (13.9, "warning"), (2.9, "critical"), (0, "critical"), (-9, "critical")],
)
def test_certificate_expiry_severity(days: float, severity: Severity | None) -> None:
    watch = Watch()
    changes = watch.see(observe_certificate(START + timedelta(days=days), START))
    assert [each.severity for each in changes] == ([severity] if severity else [])
    assert all(("expired" if days <= 0 else "expires") in each.message for each in changes)
    # A renewed or removed certificate clears the alert.
    for settled in (START + timedelta(days=80), None):
        watch = Watch()
        watch.see(observe_certificate(START + timedelta(days=days), START))
        watch.see(observe_certificate(settled, START))
        assert watch.standing == {}


def vm(number: int, **more: Any) -> Vm:
    return Vm(
        id=f"vm-{number}",
        slot=number,
        vm_ip=f"192.168.100.{number}",
        stage="ready",
        stage_at=START,
        image_digest="4f1d",
        created_at=START,
        **more,
    )


def workload(held: Sequence[Vm] = (), failed_boots: int = 0, failed_while_up: int = 0) -> Workload:
    return Workload(held, (), failed_boots, failed_while_up, {})


class TestObserved:
    def all(self, seen: Observed, rule: Rule) -> Sequence[Observation]:
        found = seen[rule]
        assert not isinstance(found, Unknown)
        return found

    def one(self, seen: Observed, rule: Rule) -> Observation:
        (found,) = self.all(seen, rule)
        return found

    def test_observe_sample_covers_every_rule_about_a_sample(self) -> None:
        sample = Sample(cpu=1, memory=1, disk={"/": 1}, slots=SlotCounts(total=2, held=0))
        assert set(observe_sample(sample, workload(), LIMITS)) == {
            "cpu",
            "memory",
            "disk",
            "temperature",
            "failed_boots",
            "not_resumed",
            "no_slots",
            "unhealthy_vms",
        }

    @pytest.mark.parametrize(("held", "pooled", "is_full"), [(2, 0, True), (2, 1, False)])
    def test_pool_slots_count_as_free(self, held: int, pooled: int, is_full: bool) -> None:
        sample = Sample(slots=SlotCounts(total=2, held=held, pooled=pooled))
        found = self.one(observe_sample(sample, workload(), LIMITS), "no_slots")
        assert (found.raises == "warning") == is_full

    def test_rules_about_vms_are_unknown_without_the_database(self) -> None:
        seen = observe_sample(Sample(cpu=1), None, LIMITS)
        assert {rule for rule, found in seen.items() if isinstance(found, Unknown)} == {
            "failed_boots",
            "not_resumed",
            "no_slots",
            "unhealthy_vms",
        }

    def test_unmeasurable_disk_keeps_its_alert(self) -> None:
        sample = Sample(disk={"/": 1}, unavailable={"disk /data": "no answer", "cpu": "broken"})
        disks = self.all(observe_sample(sample, None, LIMITS), "disk")
        seen = {each.subject: each for each in disks}
        assert set(seen) == {"/", "/data"}
        assert (seen["/data"].raises, seen["/data"].keeps) == (None, "critical")

    def test_unreadable_sensor_keeps_its_alert(self) -> None:
        sample = Sample(unavailable={"temperature": "broken"})
        assert observe_sample(sample, None, LIMITS)["temperature"] == Unknown("broken")

    def test_disk_rule_is_unknown_without_any_disk(self) -> None:
        sample = Sample(unavailable={"disk": "broken"})
        assert observe_sample(sample, None, LIMITS)["disk"] == Unknown("broken")

    def test_unhealthy_vms_are_ready_ones_with_failed_checks(self) -> None:
        held = [
            vm(2, state="ready", failed_checks=1),
            vm(3, state="ready"),
            vm(4, state="starting", failed_checks=1),
        ]
        sample = Sample(slots=SlotCounts(total=8, held=3))
        seen = self.one(
            observe_sample(sample, workload(held, failed_while_up=2), LIMITS), "unhealthy_vms"
        )
        assert seen.value == 3


class TestClearing:
    """`all_clear` clears an alert of a rule; a subject that a rule does not mention is clear."""

    def test_all_clear_clears_an_alert(self) -> None:
        watch = Watch()
        watch.standing["failed_boots", HOST] = "critical"
        (change,) = watch.see({"failed_boots": [all_clear(HOST, "no VM failed")]})
        assert (change.severity, change.message) == (None, "no VM failed")
        assert watch.see({"failed_boots": [all_clear(HOST, "no VM failed")]}) == []

    def test_missing_certificate_clears_its_alert(self) -> None:
        watch = Watch()
        watch.standing["certificate", HOST] = "warning"
        (change,) = watch.see(observe_certificate(None, START))
        assert change.message == "the controller has no certificate of its own"

    def test_later_deployment_clears_the_alert(self) -> None:
        watch = Watch()
        watch.see(observe_deployments(("one", "failed")))
        (change,) = watch.see(observe_deployments(None))
        assert change.message == "deployment one has succeeded or is no longer the newest"


def test_log_event_names_of_changes() -> None:
    changes: list[tuple[Severity | None, Severity | None]] = [
        ("warning", None),
        ("warning", "critical"),
        (None, "warning"),
    ]
    called = [AlertChange("cpu", HOST, to, before, "", None).event for to, before in changes]
    assert called == ["alert_raised", "alert_lowered", "alert_cleared"]


def test_message_of_a_raised_and_a_cleared_alert() -> None:
    raised = AlertChange("disk", "/data", "critical", None, "disk /data is at 95 %", 95)
    assert message_of(raised, "host-1").title == "[critical] host-1: disk"
    assert message_of(raised, "host-1").kind == "failure"
    cleared = AlertChange("no_slots", HOST, None, "warning", "1 of 2 slots are in use", 1)
    told = message_of(cleared, "host-1")
    assert (told.title, told.body) == ("[cleared] host-1: no slots", "1 of 2 slots are in use")
    assert told.kind == "success"


def test_webhook_alert_per_endpoint_for_long_or_final_failures() -> None:
    names = ("front", "audit")
    endpoints = tuple(WebhookEndpoint(name=name, url="https://x.example") for name in names)
    settings = WebhookSettings(endpoints=endpoints, alert_seconds=600)
    watch = Watch()

    def told(**backlogs: Backlog) -> list[tuple[str, Severity | None, str]]:
        seen = observe_webhooks(backlogs, settings, watch.at + timedelta(seconds=10))
        return [(each.subject, each.severity, each.message) for each in watch.see(seen)]

    def failing(seconds: float, failed: int = 0) -> Backlog:
        return Backlog(3, watch.at + timedelta(seconds=10 - seconds), failed)

    assert told() == told(front=Backlog(9)) == told(front=failing(599)) == []
    assert told(front=failing(3600)) == [
        (
            "front",
            "warning",
            "webhook endpoint front: 3 deliveries are waiting, the oldest failing for 1.0 h; "
            "./inv webhooks shows why",
        )
    ]
    ((subject, severity, message),) = told(front=failing(3600, 2))
    assert (subject, severity) == ("front", "critical")
    assert "2 deliveries failed for good within a day and 3 deliveries are waiting" in message
    ((subject, severity, _),) = told(audit=Backlog(0, None, 1), front=failing(3600, 2))
    assert (subject, severity) == ("audit", "critical")
    # A successful resend clears the failure; a removed endpoint has no alert.
    assert told(front=failing(10), audit=Backlog(0, None, 1))[0][:2] == ("front", None)
    settings = WebhookSettings(endpoints=endpoints[:1])
    assert [each[:2] for each in told()] == [("audit", None)]

"""What the alerts' rules see of a sample. Pure; a rule that could not look is left out."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from polydev.controller.host.alerting import (
    HOST,
    Observation,
    Observed,
    Rule,
    certificate_observation,
    deploy_observation,
    failed_boots_observation,
    no_slots_observation,
    not_resumed_observation,
    percent_observation,
    temperature_observation,
    template_missing_observation,
    unhealthy_vms_observation,
    webhooks_observation,
)
from polydev.controller.host.sample import Sample, Workload, disk_key
from polydev.controller.machines.hypervisor import TemplatesReport
from polydev.controller.settings import AlertRules, WebhookSettings
from polydev.controller.store.webhook_log import Backlog


def observed(sample: Sample, workload: Workload | None, limits: AlertRules) -> Observed:
    found: dict[Rule, list[Observation]] = {
        "cpu": [percent_observation("CPU", HOST, sample.cpu, limits)],
        "memory": [percent_observation("memory", HOST, sample.memory, limits)],
    }
    if "disk" not in sample.unavailable:
        found["disk"] = _disks(sample, limits)
    if "temperature" not in sample.unavailable:
        found["temperature"] = [
            temperature_observation(sample.temperature, sample.temperature_critical, limits)
        ]
    if workload is not None and sample.slots is not None:
        failing = sum(each.state == "ready" and each.failed_checks > 0 for each in workload.held)
        found["failed_boots"] = [failed_boots_observation(workload.failed_boots, limits)]
        found["not_resumed"] = [not_resumed_observation(*workload.not_resumed, limits)]
        slots = sample.slots
        found["no_slots"] = [no_slots_observation(slots.total, slots.held - slots.pooled)]
        found["unhealthy_vms"] = [
            unhealthy_vms_observation(failing, workload.failed_while_up, limits)
        ]
    return found


def _disks(sample: Sample, limits: AlertRules) -> list[Observation]:
    prefix = disk_key("")
    unmeasured = [
        name.removeprefix(prefix) for name in sample.unavailable if name.startswith(prefix)
    ]
    values = {**dict.fromkeys(unmeasured), **sample.disk}
    return [
        percent_observation(f"disk {mount}", mount, value, limits)
        for mount, value in values.items()
    ]


def templates_observed(report: TemplatesReport | None) -> Observed:
    """Of the golden image's template, where it is not there; `None` where templates are off."""
    return {"template_missing": [template_missing_observation(report)]}


def deployment_observed(failed: tuple[str, str] | None) -> Observed:
    """Of the newest deployment, if it failed."""
    return {"deploy_failed": [deploy_observation(*failed)] if failed else []}


def certificate_observed(ends_at: datetime | None, at: datetime) -> Observed:
    """Of the controller's own certificate; `None` where it has none."""
    found = [] if ends_at is None else [certificate_observation(ends_at, at)]
    return {"certificate": found}


def webhooks_observed(
    backlogs: Mapping[str, Backlog], settings: WebhookSettings, at: datetime
) -> Observed:
    """Observe each endpoint: deliveries that fail for long, or have failed for good."""
    lasting = at - timedelta(seconds=settings.alert_seconds)
    found = []
    for each in settings.endpoints:
        backlog = backlogs.get(each.name, Backlog())
        since = backlog.failing_since
        since = since if since and since <= lasting else None
        found.append(webhooks_observation(each.name, backlog.waiting, since, backlog.failed, at))
    return {"webhooks": found}

"""The state of the host in one answer: a status, the problems, and what to do about them."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

from fastapi import APIRouter
from pydantic import ConfigDict

from polydev.controller.api.documented_errors import error_responses
from polydev.controller.api_model import ApiModel
from polydev.controller.app_services import Services
from polydev.controller.host.system_status import Status

EXAMPLE: dict[str, Any] = {
    "at": "2026-11-21T10:15:00Z",
    "status": "critical",
    "findings": [
        {
            "part": "disk",
            "subject": "/data",
            "status": "critical",
            "detail": "disk /data is at 95 %",
            "hint": "on the host, du -xhd1 /data shows what is large; ./inv golden.prune removes "
            "images that nothing needs",
        }
    ],
}


class FindingAnswer(ApiModel):
    """A problem of the host.

    part        the rule of an alert, or a part of the host
    subject     which one: a mount, a slot; `host` if there is only one
    hint        what to do
    """

    part: str
    subject: str
    status: Status
    detail: str
    hint: str


class OverviewAnswer(ApiModel):
    """The state of the host. Findings are listed worst first; `status` is the worst of them."""

    model_config = ConfigDict(title="Overview", json_schema_extra={"examples": [EXAMPLE]})

    at: datetime
    status: Status
    findings: list[FindingAnswer]


def add_overview(router: APIRouter, services: Services) -> None:
    @router.get(
        "/overview",
        summary="The state of the host: its problems, and what to do about them",
        description="Metrics, network, active alerts, templates, the pool and the controller's "
        "dependencies, checked every two seconds.",
        responses=error_responses(),
    )
    async def get_overview() -> OverviewAnswer:
        snapshot = await services.host_state.latest()
        found = snapshot.overview
        return OverviewAnswer(
            at=snapshot.at,
            status=found.status,
            findings=[FindingAnswer(**asdict(each)) for each in found.findings],
        )

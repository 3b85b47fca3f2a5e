"""Is the host well, in one answer: a status, what is wrong, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

from fastapi import APIRouter
from pydantic import ConfigDict

from polydev.controller.api.error_responses import error_responses
from polydev.controller.api_model import ApiModel
from polydev.controller.host.status import Status
from polydev.controller.services import Services

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
    """Something that is not well.

    part        what it is about: the rule of an alert, or a part of the host
    subject     which one of them: a mount, a slot; `host` where there is one only
    hint        what to do
    """

    part: str
    subject: str
    status: Status
    detail: str
    hint: str


class OverviewAnswer(ApiModel):
    """`status` is the worst of the findings', which stand with the worst first."""

    model_config = ConfigDict(title="Overview", json_schema_extra={"examples": [EXAMPLE]})

    at: datetime
    status: Status
    findings: list[FindingAnswer]


def add_overview(router: APIRouter, services: Services) -> None:
    @router.get(
        "/overview",
        summary="Whether the host is well, and what to do if not",
        description="The host's figures, its network, the alerts that stand, templates, the pool "
        "and what the controller depends on, judged together; measured anew every two seconds.",
        responses=error_responses(),
    )
    async def get_overview() -> OverviewAnswer:
        snapshot = await services.snapshots.latest()
        found = snapshot.overview
        return OverviewAnswer(
            at=snapshot.at,
            status=found.status,
            findings=[FindingAnswer(**asdict(each)) for each in found.findings],
        )

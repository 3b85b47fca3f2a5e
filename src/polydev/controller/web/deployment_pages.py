"""The operators' pages of deployments, with the command that rolls each back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from polydev.controller.api.deployments import (
    ID_PATTERN,
    DeploymentId,
    deployment_detail,
    deployment_list,
)
from polydev.controller.app_services import Services
from polydev.controller.auth.authentication import AskingOperator
from polydev.controller.web.css_classes import deployment_level
from polydev.controller.web.formatting import NOTHING, duration_text, time_text
from polydev.controller.web.page_rendering import Pages

SHOWN = 30
MOST_OPERATIONS = 500
FORMATS: Mapping[str, Any] = {
    "time": time_text,
    "duration": duration_text,
    "nothing": NOTHING,
    "level_of": deployment_level,
}

Before = Annotated[str | None, Query(pattern=ID_PATTERN)]


def routes(_services: Services, pages: Pages) -> APIRouter:
    router = APIRouter(prefix="/admin/deployments", include_in_schema=False)

    @router.get("")
    async def show_deployments(
        request: Request, _operator: AskingOperator, before: Before = None
    ) -> Response:
        found = await deployment_list(SHOWN, before)
        return pages.render(request, "deployments.html", found=found, before=before, **FORMATS)

    @router.get("/{deployment_id}")
    async def show_deployment(
        request: Request, deployment_id: DeploymentId, _operator: AskingOperator
    ) -> Response:
        found = await deployment_detail(deployment_id)
        values = record_values(found.record)
        return pages.render(request, "deployment.html", deployment=found, **values, **FORMATS)

    return router


def record_values(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a record that a page shows; invalid parts are left out."""
    operations = record.get("operations")
    undone = record.get("undone")
    shown = operations[:MOST_OPERATIONS] if isinstance(operations, list) else []
    return {
        "operations": [str(each) for each in shown],
        "checks": checks_of(record.get("gate")),
        "undone": undone if isinstance(undone, dict) else None,
        "undone_checks": checks_of(undone.get("gate") if isinstance(undone, dict) else None),
    }


def checks_of(gate: object) -> list[dict[str, Any]]:
    """Return the checks of a health gate, failed ones first."""
    found = gate.get("checks") if isinstance(gate, dict) else None
    checks = [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    shown = [
        {
            "name": str(each.get("name", "")),
            "ok": each.get("ok") is True,
            "detail": each.get("detail"),
        }
        for each in checks
    ]
    return sorted(shown, key=lambda check: check["ok"])

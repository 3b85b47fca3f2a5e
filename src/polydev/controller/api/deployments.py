"""Deployments, rollbacks and backups of this host, for operators."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import ConfigDict

from polydev.controller.api.documented_errors import error_responses
from polydev.controller.api.pagination import BEFORE, page_of
from polydev.controller.api.url_numbers import WholeNumber
from polydev.controller.api_model import ApiModel
from polydev.controller.host import deployments as records
from polydev.controller.host.deployments import (
    Deployment,
    WayBack,
    deployments,
    one_of,
    way_back,
)
from polydev.host_layout import DEPLOYMENT_ID

MOST_LISTED = 200
UNREADABLE = "unreadable"
ID_PATTERN = f"^{DEPLOYMENT_ID.pattern}$"
EXAMPLE: dict[str, Any] = {
    "id": "20261121_101500-0123abcd",
    "number": 41,
    "kind": "deploy",
    "status": "succeeded",
    "target": "all",
    "host": "browsers-1.example.com",
    "who": "ada@desk",
    "commit": "0123abcd",
    "startedAt": "2026-11-21T10:15:00Z",
    "finishedAt": "2026-11-21T10:16:12Z",
    "changes": 3,
    "reason": None,
    "problem": None,
}
NO_DEPLOYMENT = (
    "There is no record of this deployment",
    {
        "type": "urn:polydev:error:deployment-not-found",
        "title": "Not Found",
        "detail": "there is no record of deployment 20261121_101500-0123abcd",
    },
)

DeploymentId = Annotated[str, Path(pattern=ID_PATTERN, description="The deployment's id")]


class DeploymentSummary(ApiModel):
    """A deployment, rollback or backup.

    If its record cannot be read, the status is `unreadable`, `problem` says why, and the other
    values are null.
    """

    model_config = ConfigDict(title="Deployment", json_schema_extra={"examples": [EXAMPLE]})

    id: str
    number: int | None
    kind: str | None
    status: str
    target: str | None
    host: str | None
    who: str | None
    commit: str | None
    started_at: datetime | None
    finished_at: datetime | None
    changes: int | None
    reason: str | None
    problem: str | None


class DeploymentList(ApiModel):
    """Newest first. Send `next` as `before` to get the next page; null: this is the last one."""

    deployments: list[DeploymentSummary]
    next: str | None


class WayBackAnswer(ApiModel):
    """The way to restore the host's state before a deployment.

    to          the deployment that the host goes back to
    command     the command for the operator's machine; null if there is none, for the `reason`
    """

    to: str | None
    command: str | None
    reason: str | None


class DeploymentDetail(DeploymentSummary):
    """A deployment with its whole `record`, and how to roll it back."""

    model_config = ConfigDict(
        title="DeploymentWithRecord",
        json_schema_extra={
            "examples": [
                {
                    **EXAMPLE,
                    "wayBack": {
                        "to": "20261120_090000-89ab",
                        "command": "./inv rollback --to 20261120_090000-89ab --inventory FILE "
                        "--host browsers-1.example.com",
                        "reason": None,
                    },
                    "record": {"id": EXAMPLE["id"], "operations": ["release", "handover"]},
                }
            ]
        },
    )

    way_back: WayBackAnswer
    record: dict[str, Any]


def add_deployments(router: APIRouter) -> None:
    _add_list(router)
    _add_one(router)


def _add_list(router: APIRouter) -> None:
    @router.get(
        "/deployments",
        summary="Deployments, rollbacks and backups of this host, newest first",
        responses=error_responses(422, own={404: NO_DEPLOYMENT}),
    )
    async def list_deployments(
        limit: Annotated[WholeNumber, Query(ge=1, le=MOST_LISTED)] = 50,
        before: Annotated[str | None, Query(pattern=ID_PATTERN, description=BEFORE)] = None,
    ) -> DeploymentList:
        return await deployment_list(limit, before)


def _add_one(router: APIRouter) -> None:
    @router.get(
        "/deployments/{deployment_id}",
        summary="A deployment with its record, and how to roll it back",
        responses=error_responses(422, own={404: NO_DEPLOYMENT}),
    )
    async def get_deployment(deployment_id: DeploymentId) -> DeploymentDetail:
        return await deployment_detail(deployment_id)


async def deployment_list(limit: int, before: str | None = None) -> DeploymentList:
    """Return a page of deployments. Raises DeploymentNotFound if `before` has no record."""
    found = await asyncio.to_thread(deployments, records.FOLDER)
    rest = found[found.index(one_of(found, before)) + 1 :] if before else found
    page, following = page_of(rest, limit, lambda deployment: deployment.id)
    return DeploymentList(deployments=[_summary(each) for each in page], next=following)


async def deployment_detail(deployment_id: str) -> DeploymentDetail:
    """Return a deployment. Raises DeploymentNotFound."""
    found = await asyncio.to_thread(deployments, records.FOLDER)
    one = one_of(found, deployment_id)
    back = _answer(way_back(one, found))
    return DeploymentDetail(**dict(_summary(one)), way_back=back, record=one.document)


def _answer(found: WayBack) -> WayBackAnswer:
    return WayBackAnswer(to=found.to, command=found.command, reason=found.reason)


def _summary(deployment: Deployment) -> DeploymentSummary:
    record = deployment.record
    return DeploymentSummary(
        id=deployment.id,
        number=record.number if record else None,
        kind=record.kind if record else None,
        status=record.status if record else UNREADABLE,
        target=record.target if record else None,
        host=record.host if record else None,
        who=record.who if record else None,
        commit=record.commit if record else None,
        started_at=record.started_at if record else None,
        finished_at=record.finished_at if record else None,
        changes=record.changes if record else None,
        reason=record.reason if record else None,
        problem=deployment.problem,
    )

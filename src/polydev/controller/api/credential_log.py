"""The log of users' credentials: users see their own, operators those of all users."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import ConfigDict

from polydev.controller.api.documented_errors import error_responses
from polydev.controller.api.pagination import BeforeId, page_of
from polydev.controller.api.url_numbers import WholeNumber
from polydev.controller.api_model import ApiModel
from polydev.controller.app_services import Services
from polydev.controller.auth.authentication import BEARER, Asking
from polydev.controller.entities import CredentialActor, CredentialEvent, CredentialEventKind
from polydev.errors import NotAllowed

MOST_LISTED = 200
EXAMPLE: dict[str, Any] = {
    "id": 41,
    "at": "2026-11-21T10:17:00Z",
    "userId": "0f9f6a0e-52a5-4f0f-8a9e-6d1d2b6f3c10",
    "provider": "claude",
    "kind": "handed_over",
    "by": "controller",
    "actorId": None,
    "sessionId": "5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01",
}


class CredentialEventAnswer(ApiModel):
    """One use of credentials, without their content.

    by          how the actor was authenticated; `controller`: by itself; `operator`: by a
                command on the host
    actorId     the user who did it; null if no user did
    sessionId   the session that it belongs to
    """

    model_config = ConfigDict(title="CredentialEvent", json_schema_extra={"examples": [EXAMPLE]})

    id: int
    at: datetime
    user_id: str
    provider: str
    kind: CredentialEventKind
    by: CredentialActor
    actor_id: str | None
    session_id: str | None


class CredentialEventList(ApiModel):
    """Newest first. Send `next` as `before` to get the next page; null: this is the last one."""

    events: list[CredentialEventAnswer]
    next: int | None


def routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/api/auth/credentials", tags=["credentials"], dependencies=[BEARER])

    @router.get(
        "/log",
        summary="The log of the caller's credentials; operators may name another user",
        responses=error_responses(422),
    )
    async def list_events(
        caller: Asking,
        user_id: Annotated[
            UUID | None, Query(alias="userId", description="The owner of the credentials")
        ] = None,
        limit: Annotated[WholeNumber, Query(ge=1, le=MOST_LISTED)] = 50,
        before: BeforeId = None,
    ) -> CredentialEventList:
        owner = caller.user_id if user_id is None else str(user_id)
        if owner != caller.user_id and not caller.sees_all:
            raise NotAllowed(
                "access denied: only operators may read the log of another user's credentials"
            )
        found = await services.credential_log.list(owner, limit + 1, before)
        page, following = page_of(found, limit, lambda event: event.id)
        return CredentialEventList(events=[_answer(each) for each in page], next=following)

    return router


def _answer(event: CredentialEvent) -> CredentialEventAnswer:
    return CredentialEventAnswer(**vars(event))

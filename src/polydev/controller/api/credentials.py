"""Store, return and remove a user's credentials of providers. Only their owner has access.

They appear in the body of `store` and in the answer of one `GET`, and nowhere else.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Response
from pydantic import BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from polydev.controller.api.documented_errors import error_responses
from polydev.controller.api.json_route import JsonRoute
from polydev.controller.api.providers import (
    ProviderName,
    known_name,
    present_name,
    unknown_before_absent,
)
from polydev.controller.api.request_bodies import SecretBody
from polydev.controller.api_model import ApiModel
from polydev.controller.app_services import Services
from polydev.controller.auth.authentication import BEARER, Asking
from polydev.controller.credential_encryption import MAX_CREDENTIALS_BYTES, compact_json
from polydev.controller.store.credential_log import actor_of
from polydev.controller.store.credentials import StoredCredentials

PATH = "/api/auth/credentials"
MAX_BYTES = MAX_CREDENTIALS_BYTES
EXAMPLE: dict[str, Any] = {"tokens": {"access": "…", "refresh": "…"}, "expires": 1795255200}
STORED_EXAMPLE: dict[str, Any] = {
    "provider": "claude",
    "sessionId": "5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01",
    "createdAt": "2026-11-21T10:17:00Z",
    "updatedAt": "2026-11-21T10:17:00Z",
    "recipient": None,
    "heldBy": None,
    "mayBeStale": False,
}
SEALED_EXAMPLE = "-----BEGIN AGE ENCRYPTED FILE-----\n…\n-----END AGE ENCRYPTED FILE-----\n"
NONE_STORED = {
    "type": "urn:polydev:error:credentials-not-found",
    "title": "Not Found",
    "detail": "you have no stored credentials of claude",
}
LOCKED = {
    "type": "urn:polydev:error:credentials-locked",
    "title": "Conflict",
    "detail": "cannot decrypt the credentials: this host does not have their key, 3f0e4d6c9a550d5f",
    "hint": "store them again, or have an operator add the missing key to credentials-key",
}
NO_KEY = {
    "type": "urn:polydev:error:no-credentials-key",
    "title": "Service Unavailable",
    "detail": "this host cannot store credentials: it has no key to seal them with",
    "hint": "an operator makes one with ./inv credentials.key, names its file credentials-key "
    "among the inventory's secrets, and deploys",
}
OWN_REFUSALS = {
    404: ("No credentials are stored", NONE_STORED),
    409: (
        "The host has no key that decrypts them; or another session uses them, which "
        "`credentials-in-use` names",
        LOCKED,
    ),
    503: ("The host has no key to encrypt credentials with, or the database is down", NO_KEY),
}

OfProvider = Annotated[ProviderName, Path(description="The provider of the credentials")]


def _sealable(given: Any) -> Any:
    if not isinstance(given, dict) or not given:
        raise PydanticCustomError("credentials", "must be a JSON object that is not empty")
    try:
        size = len(compact_json(given))
    except (ValueError, RecursionError):
        raise PydanticCustomError("credentials", "must be valid JSON in UTF-8") from None
    if size > MAX_BYTES:
        told = f"must not be larger than {MAX_BYTES} bytes as compact JSON"
        raise PydanticCustomError("credentials", "{told}", {"told": told})
    return given


class StoreRequest(SecretBody):
    """`credentials` in the form in which the provider's tool stores them."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "provider": "claude",
                    "credentials": EXAMPLE,
                    "sessionId": STORED_EXAMPLE["sessionId"],
                }
            ]
        },
    )

    provider: ProviderName
    credentials: Annotated[dict[str, Any], BeforeValidator(_sealable)] = Field(
        min_length=1, repr=False, description=f"{MAX_BYTES} bytes at most, as compact JSON"
    )
    session_id: UUID | None = Field(
        default=None,
        alias="sessionId",
        description="The caller's session in which the tool logged in; it becomes `authenticated`",
    )


class StoredAnswer(ApiModel):
    """Stored credentials, without their content.

    sessionId   the session whose login they are from
    recipient   the age recipient that they are encrypted to: only its owner can decrypt them
    heldBy      the session that uses them, if only one may at a time
    mayBeStale  a session that used them ended before they could be read back: if the provider
                refuses them, log in again
    """

    model_config = ConfigDict(
        title="StoredCredentials", json_schema_extra={"examples": [STORED_EXAMPLE]}
    )

    provider: str
    session_id: str | None
    created_at: datetime
    updated_at: datetime
    recipient: str | None
    held_by: str | None
    may_be_stale: bool


class CredentialsAnswer(StoredAnswer):
    """Stored credentials with their content. With a recipient, `credentials` is null and `sealed`
    is an armored age file, which `age -d -i KEY` decrypts.
    """

    model_config = ConfigDict(
        title="Credentials",
        json_schema_extra={
            "examples": [{**STORED_EXAMPLE, "credentials": EXAMPLE, "sealed": None}]
        },
    )

    credentials: dict[str, Any] | None
    sealed: str | None


class StoredList(ApiModel):
    """All stored credentials, by provider."""

    credentials: list[StoredAnswer]


def routes(services: Services) -> APIRouter:
    router = APIRouter(
        prefix=PATH, tags=["credentials"], dependencies=[BEARER], route_class=JsonRoute
    )
    _add_store(router, services)
    _add_all(router, services)
    _add_one(router, services)
    return router


def _add_store(router: APIRouter, services: Services) -> None:
    @router.post(
        "/store",
        status_code=201,
        summary="Store the caller's credentials of a provider, replacing earlier ones",
        description="They are encrypted at rest. `sessionId` must name a live session of the "
        "caller and of that provider. If its tool waits for its login, it becomes "
        "`authenticated`; then it gets the receipt of the credentials, and if it has a recipient, "
        "they are encrypted to that.",
        responses={
            200: {"model": StoredAnswer, "description": "Stored, replacing earlier ones"},
            201: {"description": "Stored; `Location` is the credentials' path"},
            **error_responses(400, 404, 410, 422, own={503: OWN_REFUSALS[503]}),
        },
    )
    async def store(body: StoreRequest, caller: Asking, response: Response) -> StoredAnswer:
        services.credential_limiter.take(caller.user_id)
        session_id = str(body.session_id) if body.session_id else None
        provider = known_name(services, body.provider, "body", "provider")
        plain = compact_json(body.credentials)
        stored, is_new = await services.credentials.store(
            caller.user_id, provider, plain, session_id, actor_of(caller)
        )
        if session_id is not None:
            services.event_notifier.notify()
        response.status_code = 201 if is_new else 200
        response.headers["Location"] = f"{PATH}/{provider}"
        return _answer(stored)


def _add_all(router: APIRouter, services: Services) -> None:
    @router.get(
        "",
        summary="The caller's stored credentials, without their content",
        responses=error_responses(),
    )
    async def list_credentials(caller: Asking) -> StoredList:
        found = await services.credentials.list(caller.user_id)
        return StoredList(credentials=[_answer(each) for each in found])

    @router.delete(
        "",
        status_code=204,
        summary="Remove all credentials of the caller",
        responses=error_responses(),
    )
    async def remove_all(caller: Asking) -> None:
        services.credential_limiter.take(caller.user_id)
        await services.credentials.remove_all(caller.user_id, actor_of(caller))


def _add_one(router: APIRouter, services: Services) -> None:
    @router.get(
        "/{provider}",
        summary="The caller's credentials of a provider",
        response_model=CredentialsAnswer,
        responses=error_responses(422, own=OWN_REFUSALS),
    )
    async def get_credentials(provider: OfProvider, caller: Asking) -> Response:
        services.credential_limiter.take(caller.user_id)
        name, actor = present_name(services, provider), actor_of(caller)
        with unknown_before_absent(services, name):
            stored, content = await services.credentials.get(caller.user_id, name, actor)
        return _with_credentials(_answer(stored), content)

    @router.delete(
        "/{provider}",
        status_code=204,
        summary="Remove the caller's credentials of a provider",
        responses=error_responses(422, own={404: OWN_REFUSALS[404]}),
    )
    async def remove(provider: OfProvider, caller: Asking) -> None:
        services.credential_limiter.take(caller.user_id)
        name, actor = present_name(services, provider), actor_of(caller)
        with unknown_before_absent(services, name):
            await services.credentials.remove(caller.user_id, name, actor)


def _answer(stored: StoredCredentials) -> StoredAnswer:
    return StoredAnswer(
        provider=stored.provider,
        session_id=stored.session_id,
        created_at=stored.created_at,
        updated_at=stored.updated_at,
        recipient=stored.recipient,
        held_by=stored.holder_id,
        may_be_stale=stored.may_be_stale,
    )


def _with_credentials(answer: StoredAnswer, content: bytes) -> Response:
    """Return the content as it was stored: encoding it again could fail."""
    told = answer.model_dump_json(by_alias=True).encode()
    both = (b"null", compact_json(content.decode())) if answer.recipient else (content, b"null")
    members = b',"credentials":%s,"sealed":%s}' % both
    return Response(told.removesuffix(b"}") + members, media_type="application/json")

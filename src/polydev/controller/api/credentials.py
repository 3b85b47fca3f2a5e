"""A user's credentials of the providers: stored, given back and removed. Only their owner is asked.

They are in the body of `store` and in the answer of one `GET`, and nowhere else.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Response
from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from polydev.controller.api.answers import Answer
from polydev.controller.api.bodies import RequestBody
from polydev.controller.api.identity import BEARER, Asking
from polydev.controller.api.providers import (
    ProviderName,
    known_name,
    present_name,
    unknown_before_absent,
)
from polydev.controller.api.refusals import refusals
from polydev.controller.services import Services
from polydev.controller.store.credentials import Stored

PATH = "/api/auth/credentials"
MAX_BYTES = 64 * 1024
EXAMPLE: dict[str, Any] = {"tokens": {"access": "…", "refresh": "…"}, "expires": 1795255200}
STORED_EXAMPLE: dict[str, Any] = {
    "provider": "claude",
    "sessionId": "5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01",
    "createdAt": "2026-11-21T10:17:00Z",
    "updatedAt": "2026-11-21T10:17:00Z",
}
NONE_STORED = {
    "type": "urn:polydev:error:credentials-not-found",
    "title": "Not Found",
    "detail": "you have no stored credentials of claude",
}
LOCKED = {
    "type": "urn:polydev:error:credentials-locked",
    "title": "Conflict",
    "detail": "the credentials cannot be opened: "
    "the key 3f0e4d6c9a550d5f that seals them is missing",
    "hint": "store them again, or an operator gives the host its key back: a line of "
    "credentials-key",
}
NO_KEY = {
    "type": "urn:polydev:error:no-credentials-key",
    "title": "Service Unavailable",
    "detail": "this host keeps no credentials: it has no key to seal them with",
    "hint": "an operator makes one with ./inv credentials.key, names its file credentials-key "
    "among the inventory's secrets, and deploys",
}
OWN_REFUSALS = {
    404: ("None are stored", NONE_STORED),
    409: ("The host has no key that opens them", LOCKED),
    503: ("The host has no key for credentials, or the database is down", NO_KEY),
}

OfProvider = Annotated[ProviderName, Path(description="Whose tool the credentials are for")]


def compact_json(credentials: Any) -> bytes:
    """What is sealed. Raises ValueError for what JSON or UTF-8 cannot say, such as infinity."""
    text = json.dumps(credentials, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode()


def _sealable(given: Any) -> Any:
    if not isinstance(given, dict) or not given:
        raise PydanticCustomError("credentials", "must be a JSON object that is not empty")
    try:
        size = len(compact_json(given))
    except (ValueError, RecursionError):
        raise PydanticCustomError("credentials", "must be what JSON in UTF-8 can say") from None
    if size > MAX_BYTES:
        told = f"may have {MAX_BYTES} bytes at most, as JSON without blanks"
        raise PydanticCustomError("credentials", "{told}", {"told": told})
    return given


class StoreRequest(RequestBody):
    """`credentials` as the provider's tool keeps them. A session of the caller may be named."""

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
        description="The session in which the tool logged in; if it waits for that, it goes on",
    )

    @model_validator(mode="before")
    @classmethod
    def _no_other_keys(cls, given: Any) -> Any:
        # pydantic would name each, and a key that is in the wrong place may be a secret.
        known = {field.alias or name for name, field in cls.model_fields.items()}
        if isinstance(given, dict) and not known.issuperset(given):
            raise PydanticCustomError("keys", "takes provider, credentials and sessionId only")
        return given


class StoredAnswer(Answer):
    """What may be told of credentials. `sessionId`: the session in which they were got."""

    model_config = ConfigDict(
        title="StoredCredentials", json_schema_extra={"examples": [STORED_EXAMPLE]}
    )

    provider: str
    session_id: str | None
    created_at: datetime
    updated_at: datetime


class CredentialsAnswer(StoredAnswer):
    """The credentials too, as they were stored."""

    model_config = ConfigDict(
        title="Credentials",
        json_schema_extra={"examples": [{**STORED_EXAMPLE, "credentials": EXAMPLE}]},
    )

    credentials: dict[str, Any]


class StoredList(Answer):
    """By provider."""

    credentials: list[StoredAnswer]


def routes(services: Services) -> APIRouter:
    router = APIRouter(prefix=PATH, tags=["credentials"], dependencies=[BEARER])
    _add_store(router, services)
    _add_all(router, services)
    _add_one(router, services)
    return router


def _add_store(router: APIRouter, services: Services) -> None:
    @router.post(
        "/store",
        status_code=201,
        summary="Keep the caller's credentials of a provider, in place of those before",
        description="They are encrypted at rest. A session that is named must be the caller's, "
        "live and of that provider; one that waits for its login becomes `authenticated`.",
        responses={
            200: {"model": StoredAnswer, "description": "Stored in place of others"},
            201: {"description": "Stored; `Location` is the credentials' address"},
            **refusals(400, 404, 410, 422, own={503: OWN_REFUSALS[503]}),
        },
    )
    async def store(body: StoreRequest, caller: Asking, response: Response) -> StoredAnswer:
        session_id = str(body.session_id) if body.session_id else None
        provider = known_name(services, body.provider, "body", "provider")
        plain = compact_json(body.credentials)
        stored, is_new = await services.credentials.store(
            caller.user_id, provider, plain, session_id
        )
        if session_id is not None:
            services.news.ring()
        response.status_code = 201 if is_new else 200
        response.headers["Location"] = f"{PATH}/{provider}"
        return _answer(stored)


def _add_all(router: APIRouter, services: Services) -> None:
    @router.get(
        "",
        summary="Of which providers the caller has credentials, without these",
        responses=refusals(),
    )
    async def list_credentials(caller: Asking) -> StoredList:
        found = await services.credentials.list(caller.user_id)
        return StoredList(credentials=[_answer(each) for each in found])

    @router.delete(
        "",
        status_code=204,
        summary="Remove all credentials of the caller",
        responses=refusals(),
    )
    async def remove_all(caller: Asking) -> None:
        await services.credentials.remove_all(caller.user_id)


def _add_one(router: APIRouter, services: Services) -> None:
    @router.get(
        "/{provider}",
        summary="The caller's credentials of a provider",
        response_model=CredentialsAnswer,
        responses=refusals(422, own=OWN_REFUSALS),
    )
    async def get_credentials(provider: OfProvider, caller: Asking) -> Response:
        name = present_name(services, provider)
        with unknown_before_absent(services, name):
            stored, plain = await services.credentials.get(caller.user_id, name)
        return _with_credentials(_answer(stored), plain)

    @router.delete(
        "/{provider}",
        status_code=204,
        summary="Remove the caller's credentials of a provider",
        responses=refusals(422, own={404: OWN_REFUSALS[404]}),
    )
    async def remove(provider: OfProvider, caller: Asking) -> None:
        name = present_name(services, provider)
        with unknown_before_absent(services, name):
            await services.credentials.remove(caller.user_id, name)


def _answer(stored: Stored) -> StoredAnswer:
    return StoredAnswer.model_validate(stored, from_attributes=True)


def _with_credentials(answer: StoredAnswer, plain: bytes) -> Response:
    """What was stored goes out as it is: writing it anew may fail on what was read well."""
    told = answer.model_dump_json(by_alias=True).encode()
    content = told.removesuffix(b"}") + b',"credentials":' + plain + b"}"
    return Response(content, media_type="application/json")

"""The providers that sessions can be started for, and their older names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from pydantic import ConfigDict, StringConstraints

from polydev.controller.api.documented_errors import error_responses
from polydev.controller.api_model import ApiModel
from polydev.controller.app_services import Services
from polydev.controller.auth.authentication import BEARER, Asking
from polydev.errors import CredentialsNotFound
from polydev.providers import Provider, by_any_name

EXAMPLE: dict[str, Any] = {
    "name": "claude",
    "label": "Claude Code",
    "note": "Log in with a Claude subscription or with an account of Anthropic's console.",
    "acceptsCode": True,
    "rotates": True,
    "olderNames": ["claude_code"],
}

ProviderName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]


class ProviderAnswer(ApiModel):
    """A provider that sessions can be started for.

    acceptsCode     whether the user can paste a code that the provider's page shows
    rotates         whether only one session at a time may use its credentials
    olderNames      accepted wherever `name` is
    """

    model_config = ConfigDict(title="Provider", json_schema_extra={"examples": [EXAMPLE]})

    name: str
    label: str
    note: str
    accepts_code: bool
    rotates: bool
    older_names: list[str]


class ProviderList(ApiModel):
    """The providers of the golden image, by name."""

    providers: list[ProviderAnswer]


def routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/api/auth", tags=["sessions"], dependencies=[BEARER])

    @router.get(
        "/providers",
        summary="Providers that sessions can be started for",
        responses=error_responses(),
    )
    async def list_providers(caller: Asking) -> ProviderList:
        known = services.providers()
        return ProviderList(providers=[_answer(known[name]) for name in sorted(known)])

    return router


def known_name(services: Services, given: str, *pointer: str) -> str:
    """Return the current name of a provider of the golden image.

    Raises RequestValidationError, which names the known ones. `pointer` is the place of `given` in
    the request.
    """
    found = by_any_name(services.providers()).get(given)
    if found is None:
        words = (
            f"there is no such provider; choose one of {', '.join(sorted(services.providers()))}"
        )
        raise RequestValidationError([{"type": "provider", "loc": pointer, "msg": words}])
    return found.name


def present_name(services: Services, given: str) -> str:
    """Return the current name of a provider, which the golden image may no longer have."""
    found = by_any_name(services.providers()).get(given)
    return given if found is None else found.name


@contextmanager
def unknown_before_absent(services: Services, name: str) -> Iterator[None]:
    """Report an unknown provider, where credentials are missing because of it."""
    try:
        yield
    except CredentialsNotFound:
        known_name(services, name, "path", "provider")
        raise


def _answer(provider: Provider) -> ProviderAnswer:
    return ProviderAnswer(
        name=provider.name,
        label=provider.label,
        note=provider.note,
        accepts_code=provider.login.accepts_code,
        rotates=provider.rotates,
        older_names=provider.older_names,
    )

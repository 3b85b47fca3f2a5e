"""Settings of who may use the controller: JWTs that are accepted, and the web pages."""

from __future__ import annotations

from pydantic import Field, field_validator

from polydev.controller.cors import checked_origin
from polydev.controller.settings.shared_types import Seconds, Section
from polydev.validation import is_one_url

# A token that is off by more was not made for now.
MOST_LEEWAY_SECONDS = 3600


class JwtSettings(Section):
    """The issuer whose JWTs are accepted, besides those signed with `jwt_secret`."""

    jwks_url: str | None = Field(default=None, pattern="^https?://")
    audience: str | None = Field(default=None, min_length=1)
    issuer: str | None = Field(default=None, min_length=1)
    leeway_seconds: float = Field(default=10, ge=0, le=MOST_LEEWAY_SECONDS)

    @field_validator("jwks_url")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        if url is not None and not is_one_url(url):
            raise ValueError("is not a valid URL: its host or port cannot be read")
        return url


class WebSettings(Section):
    """The web pages.

    public_url        the address that users' browsers see, if a proxy hides it:
                      https://vms.example.com
    embed_origins     web pages that may show a session in a frame; none by default
    sign_in_seconds   how long a browser stays signed in
    ticket_seconds    by when a link that opens a page must be opened
    """

    public_url: str | None = None
    embed_origins: tuple[str, ...] = ()
    sign_in_seconds: Seconds = 12 * 3600
    ticket_seconds: Seconds = 300

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, url: str | None) -> str | None:
        return None if url is None else checked_origin(url)

    @field_validator("embed_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        return checked_origins(origins)


def checked_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    """Return the origins as browsers write them. Raises ValueError."""
    try:
        return tuple(checked_origin(each) for each in origins)
    except ValueError as error:
        raise ValueError(f"one entry {error}") from None

"""A controller's pages for a person at this machine: a link that signs their browser in, once."""

from __future__ import annotations

import os
import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from polydev.client.controller_api import ControllerApi

DASHBOARD = "/admin"
START = "/"
# Programs with windows find their screen by these.
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")


@dataclass(frozen=True)
class SignInLink:
    """`page` is where the browser ends up; `expires_at` by when the link must be opened, UTC."""

    url: str
    page: str
    expires_at: str


def sign_in_link(api: ControllerApi, path: str) -> SignInLink:
    """A new link to a page, for whoever the API's token stands for.

    Raises ControllerUnreachable and ControllerRefused.
    """
    made = api.post("/api/auth/sign-in-link")
    login, _, code = str(made["url"]).partition("#")
    url = f"{api.url}{login}?{urlencode({'next': path}, quote_via=quote, safe='/')}#{code}"
    return SignInLink(url, f"{api.url}{path}", str(made["expiresAt"]))


def show_in_browser(url: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a browser with windows was there to be given the address."""
    if not any(environment.get(name) for name in DISPLAYS):
        return False
    try:
        return webbrowser.open(url)
    except webbrowser.Error:
        return False

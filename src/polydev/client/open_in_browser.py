"""Open a controller's pages in a browser, by one-time links that sign it in."""

from __future__ import annotations

import os
import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from polydev.client.controller_api import ControllerApi

DASHBOARD = "/admin"
START = "/"
# Variables that name the display of programs with windows.
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")


@dataclass(frozen=True)
class SignInLink:
    """A sign-in link: `page` is its destination, `expires_at` when it becomes invalid, UTC."""

    url: str
    page: str
    expires_at: str


def sign_in_link(api: ControllerApi, path: str) -> SignInLink:
    """Return a new link to a page, for the user of the API's token.

    Raises ControllerUnreachable and ControllerRefused.
    """
    made = api.post("/api/auth/sign-in-link")
    login, _, code = str(made["url"]).partition("#")
    url = f"{api.url}{login}?{urlencode({'next': path}, quote_via=quote, safe='/')}#{code}"
    return SignInLink(url, f"{api.url}{path}", str(made["expiresAt"]))


def show_in_browser(url: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Open a URL in a browser with windows; return whether there is one."""
    if not any(environment.get(name) for name in DISPLAYS):
        return False
    try:
        return webbrowser.open(url)
    except webbrowser.Error:
        return False

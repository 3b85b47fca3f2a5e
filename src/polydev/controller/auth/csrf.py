"""Protect browsers that are signed in against requests from pages of other sites (CSRF).

Browsers say which site a request comes from by `Sec-Fetch-Site` and `Origin`, which pages cannot
change (https://www.w3.org/TR/fetch-metadata/).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, QueryParams
from starlette.responses import Response
from starlette.types import Scope

from polydev.controller.auth.client_address import Networks, address_of, is_trusted
from polydev.controller.auth.cookies import has_csrf_token, remove_cookie, shown_cookie
from polydev.errors import NotAllowed

SESSION_PAGES = re.compile(r"/session/[^/]+")
SECURE_SCHEMES = ("https", "wss")


def shows_session_by_ticket(scope: Scope) -> bool:
    """Whether a request opens a session's page by a ticket, without a sign-in or in a frame."""
    has_ticket = "ticket" in QueryParams(scope["query_string"])
    is_page = SESSION_PAGES.fullmatch(scope["path"]) is not None
    return has_ticket and is_page and scope["method"] == "GET"


@dataclass(frozen=True)
class BrowserRules:
    """Checks of requests from browsers.

    public_url  the address that browsers use; None: the one in their Host header
    proxies     trusted proxies, whose word on TLS counts
    """

    public_url: str | None = None
    proxies: Networks = ()

    def is_secure(self, scope: Scope) -> bool:
        """Whether the browser uses TLS, with us or with a trusted proxy."""
        if scope["scheme"] in SECURE_SCHEMES or (self.public_url or "").startswith("https://"):
            return True
        client = scope.get("client")
        address = address_of(client[0]) if client else None
        # A request without a peer came through a Unix socket, which only local proxies can use.
        is_proxy = address is None or is_trusted(address, self.proxies)
        told = Headers(scope=scope).get("x-forwarded-proto", "").rpartition(",")[2].strip()
        return is_proxy and told == "https"

    def cookie_of(self, scope: Scope) -> str | None:
        return shown_cookie(Headers(scope=scope), is_secure=self.is_secure(scope))

    def is_from_own_page(self, headers: Headers) -> bool:
        """Return False if the browser says that a page of another site sent the request.

        True does not prove the opposite: browsers may say nothing. A CSRF token proves it.
        """
        if headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return False
        origin = headers.get("origin")
        return origin is None or self.is_own_origin(origin, headers)

    def is_own_origin(self, origin: str, headers: Headers) -> bool:
        """Whether the origin is the address that the browser sent the request to."""
        if self.public_url is not None and origin == self.public_url:
            return True
        try:
            asked = urlsplit(origin).netloc
        except ValueError:
            return False
        return bool(asked) and asked == headers.get("host", "").lower()

    def forget_cookie(self, scope: Scope, response: Response) -> None:
        """Remove the browser's invalid cookie, if it sent one.

        Pages in open tabs keep sending requests, and each would count as a failed login.
        """
        if self.cookie_of(scope) is not None:
            remove_cookie(response, is_secure=self.is_secure(scope))

    def check_is_no_other_site(self, headers: Headers) -> None:
        """Raise NotAllowed for a request that a page of another site sent with the cookie."""
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            raise NotAllowed("access denied: the request comes from a page of another site")

    def check_is_own(self, headers: Headers, cookie: str) -> None:
        """Raise NotAllowed unless one of our pages sent the request, with a CSRF token."""
        if not self.is_from_own_page(headers):
            raise NotAllowed("access denied: the request comes from a page of another site")
        if not has_csrf_token(headers, cookie):
            raise NotAllowed(
                "access denied: the request has no valid CSRF token",
                "reload the page and try again",
            )

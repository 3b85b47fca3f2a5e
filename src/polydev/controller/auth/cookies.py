"""The cookie of a signed-in browser, and its CSRF token."""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import Response

# Browsers accept a cookie with this prefix only over TLS, for this host and for all paths.
SECURE_NAME, PLAIN_NAME = "__Host-polydev", "polydev"
CSRF_HEADER = "X-CSRF-Token"


def shown_cookie(headers: Headers, *, is_secure: bool) -> str | None:
    """Return the secret in the browser's cookie; None without one."""
    cookies = cookie_parser(headers.get("cookie", ""))
    return cookies.get(SECURE_NAME if is_secure else PLAIN_NAME) or None


def csrf_token(cookie: str) -> str:
    """Return the token that our pages send with requests; it does not reveal the cookie."""
    return hmac.new(cookie.encode(), b"csrf", hashlib.sha256).hexdigest()


def has_csrf_token(headers: Headers, cookie: str) -> bool:
    return hmac.compare_digest(headers.get(CSRF_HEADER, "").encode(), csrf_token(cookie).encode())


def set_cookie(response: Response, secret: str, until: datetime, *, is_secure: bool) -> None:
    response.set_cookie(
        SECURE_NAME if is_secure else PLAIN_NAME,
        secret,
        expires=until,
        path="/",
        secure=is_secure,
        httponly=True,
        samesite="strict",
    )


def remove_cookie(response: Response, *, is_secure: bool) -> None:
    name = SECURE_NAME if is_secure else PLAIN_NAME
    response.delete_cookie(name, path="/", secure=is_secure, httponly=True, samesite="strict")

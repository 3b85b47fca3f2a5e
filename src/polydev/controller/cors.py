"""Cross-origin requests: which web pages of other sites may call the API from a browser.

Browsers send a preflight request without a token first, which is answered before authentication.
All other origins are treated as if there were no CORS.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
EXPOSED_HEADERS = ("Location", "Retry-After", "WWW-Authenticate", "X-Request-Id")
DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]")


class Cors(CORSMiddleware):
    """Answer preflights of `origins`, and let them read answers."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        # Tokens come in a header, so credentials (cookies) are not allowed. All headers and methods
        # are: the API refuses wrong ones with a reason, which a failed preflight lacks.
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=("*",),
            expose_headers=EXPOSED_HEADERS,
            allow_private_network=True,  # hosts are often in private networks
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        method = headers.get("access-control-request-method", METHODS[0])
        if self.is_allowed_origin(headers.get("origin", "")) and method in METHODS:
            await super().__call__(scope, receive, send)
            return

        async def varied(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"vary", b"Origin")]
            await send(message)

        await self.app(scope, receive, varied)


def checked_origin(text: str) -> str:
    """Return an origin as browsers write it: scheme, host, and port unless it is the default.

    Raises ValueError for anything else.
    """
    try:
        parts = urlsplit(text.lower())
        port = parts.port
    except ValueError:
        port, parts = None, urlsplit("")
    host = parts.netloc.removesuffix(f":{port}") if port is not None else parts.netloc
    if parts.scheme not in DEFAULT_PORTS or not _HOST.fullmatch(host) or parts[2:] not in _NO_PATHS:
        raise ValueError("is not an origin, such as https://app.example.com")
    if port is None or port == DEFAULT_PORTS[parts.scheme]:
        return f"{parts.scheme}://{host}"
    return f"{parts.scheme}://{host}:{port}"


_NO_PATHS = (("", "", ""), ("/", "", ""))

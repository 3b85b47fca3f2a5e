"""Middleware that limits the size of requests' bodies; `request_limits` has the other limits."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polydev.controller.auth.open_paths import is_open
from polydev.controller.problem_details import answer_problem

MOST_OPEN_BYTES = 16 * 1024


class BodyLimit:
    """Refuse too large bodies with 413, by their Content-Length and by what arrives.

    Requests that need no authentication have a smaller limit.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = min(self.max_bytes, MOST_OPEN_BYTES) if is_open(scope) else self.max_bytes
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > most:
            response = await answer_problem(Request(scope), _too_large(most))
            await response(scope, receive, send)
            return
        arrived = 0

        async def limited() -> Message:
            nonlocal arrived
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > most:
                raise _too_large(most)
            return message

        await self.app(scope, limited, send)


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"the body is too large: at most {most} bytes are allowed")

"""HTTP requests and replies as values. Pure; `server` has the sockets."""

from __future__ import annotations

import json
from http import HTTPStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from polydev.agent.reply_types import ProblemReply


class HttpRequest:
    """A request. `is_from_guest` means that a program of this VM sent it, not the host."""

    __slots__ = ("body", "is_from_guest", "method", "path")

    def __init__(
        self, method: str, path: str, body: bytes = b"", *, is_from_guest: bool = False
    ) -> None:
        self.method = method
        self.path = path
        self.body = body
        self.is_from_guest = is_from_guest


class HttpReply:
    """A reply; `note` is for the log only."""

    __slots__ = ("body", "content_type", "headers", "note", "status")

    def __init__(
        self,
        status: int,
        body: str,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
        note: str = "",
    ) -> None:
        self.status = status
        self.body = body.encode()
        self.content_type = content_type
        self.headers = headers or {}
        self.note = note


def json_reply(status: int, value: object, note: str = "") -> HttpReply:
    return HttpReply(status, json.dumps(value, separators=(",", ":")), note=note)


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> HttpReply:
    """Return an error reply with RFC 9457 problem details."""
    body: ProblemReply = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    return HttpReply(status, json.dumps(body), "application/problem+json", headers, note=detail)

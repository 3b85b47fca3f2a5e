"""HTTP/1.1 as far as the agent speaks it: bytes to requests, replies to bytes. No sockets here.

One request a connection, no bodies read. The standard library's http.server would do more,
but it draws in `email` and `socketserver`: see `server` for the figures.
"""

from __future__ import annotations

import time

from polydev.agent.errors import RequestRefused
from polydev.agent.jsontext import json_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from polydev.agent.messages import Problem

MAX_HEAD_BYTES = 8192
MAX_HEADERS = 64
HEAD_END = b"\r\n\r\n"
METHODS = ("GET", "HEAD")
ACTING_METHODS = (*METHODS, "POST")

TITLES = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}

_TOKEN = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_VISIBLE = bytes(range(0x21, 0x7F))
_CONTROL = bytes(set(range(0x20)) - {0x09}) + b"\x7f"


class Request:
    __slots__ = ("method", "path")

    def __init__(self, method: str, path: str) -> None:
        self.method = method
        self.path = path


class Reply:
    """A status with its body; `note` is for the log only."""

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


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Reply:
    """A refusal as RFC 9457 problem details."""
    body: Problem = {
        "type": "about:blank",
        "title": TITLES[status],
        "status": status,
        "detail": detail,
    }
    return Reply(status, json_text(body), "application/problem+json", headers, note=detail)


def reply_bytes(reply: Reply, now_seconds: float, *, with_body: bool = True) -> bytes:
    """The reply as it goes over the wire; `now_seconds` is the time since the epoch."""
    lines = [
        f"HTTP/1.1 {reply.status} {TITLES[reply.status]}",
        time.strftime("Date: %a, %d %b %Y %H:%M:%S GMT", time.gmtime(now_seconds)),
        f"Content-Type: {reply.content_type}",
        f"Content-Length: {len(reply.body)}",
        "Cache-Control: no-store",
        "Connection: close",
        *(f"{name}: {value}" for name, value in reply.headers.items()),
    ]
    head = "\r\n".join(lines).encode() + HEAD_END
    return head + reply.body if with_body else head


def request_of_head(head: bytes) -> Request:
    """Read what precedes the empty line; RequestRefused says what is wrong with it."""
    first, *fields = head.split(b"\r\n")
    request, version = _request_line(first)
    if len(fields) > MAX_HEADERS:
        raise RequestRefused(431, f"more than {MAX_HEADERS} header fields")
    names = [_field_name(field) for field in fields]
    if version != b"HTTP/1.0" and names.count(b"host") != 1:
        raise RequestRefused(400, "HTTP/1.1 asks for exactly one Host field")
    return request


def _request_line(line: bytes) -> tuple[Request, bytes]:
    parts = line.split(b" ")
    if len(parts) != 3:
        raise RequestRefused(400, "the first line is not of the form METHOD TARGET VERSION")
    method, target, version = parts
    if not method or method.translate(None, _TOKEN):
        raise RequestRefused(400, "the method is not a token")
    if not target or target.translate(None, _VISIBLE):
        raise RequestRefused(400, "the target has other than visible ASCII characters")
    if not (len(version) == 8 and version.startswith(b"HTTP/") and version[6:7] == b"."):
        raise RequestRefused(400, "the first line does not end in an HTTP version")
    if not (version[5:6].isdigit() and version[7:8].isdigit()):
        raise RequestRefused(400, "the first line does not end in an HTTP version")
    if version[5:6] != b"1":
        raise RequestRefused(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
    return Request(method.decode(), _path(target.decode())), version


def _path(target: str) -> str:
    if target[:7].lower() == "http://":  # absolute form, as proxies send it
        target = "/" + target[7:].partition("/")[2]
    if not target.startswith("/") and target != "*":
        raise RequestRefused(400, "the target is neither a path nor an http URL")
    return target.partition("#")[0].partition("?")[0]


def _field_name(field: bytes) -> bytes:
    name, colon, value = field.partition(b":")
    if not colon or not name or name.translate(None, _TOKEN):
        raise RequestRefused(400, "a header field is not of the form Name: value")
    if len(value) != len(value.translate(None, _CONTROL)):
        raise RequestRefused(400, "a header field holds control characters")
    return name.lower()

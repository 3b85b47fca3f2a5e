"""Limits of an incomplete request: bytes and number of headers, and time; for bodies `body_limit`.

The parser buffers a header until its end, so bytes are counted before the parser gets them. A
request that exceeds a limit is refused before the application sees it.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from http import HTTPStatus
from typing import Literal

from polydev.controller.settings import ConnectionLimits

MOST_TARGET_BYTES = 16 * 1024
MOST_HEADER_BYTES = 32 * 1024
MOST_HEADERS = 100
MOST_PARSED_BYTES = 16 * 1024
"""The parser gets so much at once. It may buffer twice MOST_HEADER_BYTES before a refusal."""

Phase = Literal["between", "headers", "body"]


class Refusal(Exception):
    """Why a request is refused before the application sees it. `reason` is a label in metrics."""

    def __init__(self, status: int, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.status = HTTPStatus(status)
        self.reason = reason
        self.detail = detail

    def answer(self) -> bytes:
        """Return the whole HTTP answer, after which the connection is closed."""
        request_id = uuid.uuid4().hex
        problem = {
            "type": "about:blank",
            "title": self.status.phrase,
            "status": self.status.value,
            "detail": self.detail,
            "error": self.detail,
            "requestId": request_id,
        }
        body = json.dumps(problem).encode()
        lines = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            "Content-Type: application/problem+json",
            f"Content-Length: {len(body)}",
            f"X-Request-Id: {request_id}",
            "X-Content-Type-Options: nosniff",
            "Cache-Control: no-store",
            "Connection: close",
        ]
        return "\r\n".join([*lines, "", ""]).encode() + body


MALFORMED = Refusal(400, "malformed", "this is not a valid HTTP/1.1 request")
TARGET_TOO_LONG = Refusal(
    414, "target_too_long", f"the request target may have {MOST_TARGET_BYTES} bytes at most"
)
HEADERS_TOO_LARGE = Refusal(
    431, "headers_too_large", f"request line and headers may have {MOST_HEADER_BYTES} bytes at most"
)
TOO_MANY_HEADERS = Refusal(
    431, "too_many_headers", f"a request may have {MOST_HEADERS} headers at most"
)


class RequestLimits:
    """Counts what one connection has sent of its request, with deadlines for the rest.

    The protocol calls these methods for the parser's events. At a limit they raise Refusal and also
    set `refusal`, since the parser hides exceptions of its callbacks. When a deadline passes,
    `on_late` is called with a Refusal.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: ConnectionLimits,
        on_late: Callable[[Refusal], None],
    ) -> None:
        self.phase: Phase = "between"
        self.refusal: Refusal | None = None
        self._loop = loop
        self._seconds = {"headers": limits.header_seconds, "body": limits.body_seconds}
        self._on_late = on_late
        self._timer: asyncio.TimerHandle | None = None
        self._timed: tuple[int, Phase] | None = None
        self._requests = 0
        self._target_bytes = 0
        self._header_bytes = 0
        self._headers = 0
        self._unended_bytes = 0
        self._has_ended = False

    def accepted(self) -> None:
        """Begin the deadline of the first headers of a new connection."""
        self._time("headers")

    def begun(self) -> None:
        self.phase = "headers"
        self._target_bytes = self._header_bytes = self._headers = 0

    def target(self, size: int) -> None:
        self._target_bytes += size
        if self._target_bytes > MOST_TARGET_BYTES:
            self.refuse(TARGET_TOO_LONG)

    def header(self, name: bytes, value: bytes) -> None:
        """Count a header or a trailer."""
        self._headers += 1
        self._header_bytes += len(name) + len(value) + len(b": \r\n")
        if self._headers > MOST_HEADERS:
            self.refuse(TOO_MANY_HEADERS)
        if self._target_bytes + self._header_bytes > MOST_HEADER_BYTES:
            self.refuse(HEADERS_TOO_LARGE)

    def headers_complete(self) -> None:
        self.phase = "body"
        self.ended()

    def ended(self) -> None:
        """Note that headers, a part of the body or a chunk's line are complete."""
        self._has_ended = True

    def complete(self) -> None:
        """Note that the request is complete."""
        self.phase = "between"
        self._requests += 1
        self.ended()

    def parsed(self, size: int) -> None:
        """Count `size` bytes that the parser has read."""
        self._unended_bytes = 0 if self._has_ended else self._unended_bytes + size
        self._has_ended = False
        if self._unended_bytes > MOST_HEADER_BYTES:
            self.refuse(MALFORMED if self.phase == "between" else HEADERS_TOO_LARGE)
        # Empty lines before a request belong to its headers.
        self._time("headers" if self._unended_bytes and self.phase == "between" else self.phase)

    def extend(self) -> None:
        """Begin the current deadline again."""
        self._time(self.phase)

    def close(self) -> None:
        """Stop the deadline."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._timed = None

    def refuse(self, refusal: Refusal) -> None:
        self.refusal = refusal
        raise refusal

    def _time(self, phase: Phase) -> None:
        """Begin the deadline of this request's phase, unless it has begun already."""
        if self._timed == (self._requests, phase):
            return
        self.close()
        self._timed = (self._requests, phase)
        if phase != "between":
            self._timer = self._loop.call_later(self._seconds[phase], self._late, phase)

    def _late(self, phase: Phase) -> None:
        self._timed = None
        what = "headers were" if phase == "headers" else "body was"
        self._on_late(
            Refusal(
                408,
                f"{phase}_timeout",
                f"the request's {what} not complete within {self._seconds[phase]:g} s",
            )
        )

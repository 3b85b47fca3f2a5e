"""What every request passes: an id, a line in the log, its figures, and a limit on its body."""

from __future__ import annotations

import re
import time
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from polydev.controller.metrics import Metrics
from polydev.controller.problems import answer_problem

log = structlog.stdlib.get_logger(__name__)

REQUEST_ID = "X-Request-Id"
REQUEST_ID_FORM = re.compile(r"[A-Za-z0-9._-]{1,64}")
UNKNOWN_ROUTE = "(none)"
HEALTH_PATH = "/api/auth/health"


class Requests:
    """Outermost: gives the id, logs and counts, and answers what nothing else caught."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id
        sent = _Sent(send, request_id)
        started = time.perf_counter()
        with bound_contextvars(requestId=request_id), self.metrics.in_flight.track_inprogress():
            try:
                await self._answer(scope, receive, sent)
            finally:
                self._tell(scope, sent.status, time.perf_counter() - started)

    async def _answer(self, scope: Scope, receive: Receive, sent: _Sent) -> None:
        try:
            await self.app(scope, receive, sent)
        except Exception as error:
            log.exception("unexpected error", path=scope["path"])
            if sent.status:
                raise  # too late for another answer: the server closes the connection
            response = await answer_problem(Request(scope), error)
            await response(scope, receive, sent)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
        self.metrics.observe(scope["method"], route, status, seconds)
        # Health is asked every few seconds, by more than one.
        tell = log.debug if scope["path"] == HEALTH_PATH else log.info
        tell(
            "request",
            method=scope["method"],
            path=scope["path"],  # not the query, which may carry a token
            route=route,
            status=status,
            durationSeconds=round(seconds, 6),
        )


class _Sent:
    """Adds the request's id to the answer; `status` is 0 until one was begun."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.send = send
        self.request_id = request_id
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)[REQUEST_ID] = self.request_id
        await self.send(message)


class BodyLimit:
    """Refuses bodies above a limit with 413, by what is announced and by what arrives."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self.max_bytes:
            response = await answer_problem(Request(scope), self._too_large())
            await response(scope, receive, send)
            return
        arrived = 0

        async def limited() -> Message:
            nonlocal arrived
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > self.max_bytes:
                raise self._too_large()
            return message

        await self.app(scope, limited, send)

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"a body may have {self.max_bytes} bytes at most")


def request_id_of(headers: Headers) -> str:
    """The caller's own id, if it can stand in a log as it is, else a new one."""
    given = headers.get(REQUEST_ID, "")
    return given if REQUEST_ID_FORM.fullmatch(given) else uuid.uuid4().hex

"""Middleware of all requests: request ids, logs, metrics, failures, authentication, HEAD."""

from __future__ import annotations

import re
import time
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from polydev.controller.auth.authentication import Authenticator, is_bearer
from polydev.controller.auth.client_address import asked_from
from polydev.controller.auth.csrf import BrowserRules
from polydev.controller.auth.open_paths import QUERY_TOKEN_PATHS, is_open
from polydev.controller.auth.page_key_permissions import check_scope
from polydev.controller.auth.rate_limits import RateLimiter
from polydev.controller.entities import Caller
from polydev.controller.metrics import Metrics
from polydev.controller.problem_details import answer_problem
from polydev.controller.url_paths import HEALTH_PATH
from polydev.errors import Error, NotAuthenticated

log = structlog.stdlib.get_logger(__name__)

REQUEST_ID = "X-Request-Id"
REQUEST_ID_FORM = re.compile(r"[A-Za-z0-9._-]{1,64}")
UNKNOWN_ROUTE = "(none)"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
API_PREFIX = "/api/"


class Requests:
    """Outermost: give each request an id, log and count it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id
        if scope["type"] == "websocket":  # the relay logs viewers itself
            with bound_contextvars(requestId=request_id):
                await self.app(scope, receive, send)
            return
        sent = _Sent(send, request_id)
        started = time.perf_counter()
        with bound_contextvars(requestId=request_id), self.metrics.in_flight.track_inprogress():
            try:
                await self.app(scope, receive, sent)
            finally:
                self._tell(scope, sent.status, time.perf_counter() - started)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
        self.metrics.observe(scope["method"], route, status, seconds)
        # Health is requested every few seconds.
        tell = log.debug if scope["path"] == HEALTH_PATH else log.info
        tell(
            "request",
            method=scope["method"],
            path=scope["path"],  # without the query, which may have a token
            route=route,
            status=status,
            durationSeconds=round(seconds, 6),
        )


class _Sent:
    """Add the request's id and headers against caching and content sniffing to the answer.

    `status` is 0 until the answer begins.
    """

    def __init__(self, send: Send, request_id: str) -> None:
        self.send = send
        self.request_id = request_id
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID] = self.request_id
            headers["X-Content-Type-Options"] = "nosniff"
            headers.setdefault("Cache-Control", "no-store")
        await self.send(message)


class Failures:
    """Answer exceptions that nothing else has caught."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        has_begun = False

        async def noticed(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, receive, noticed)
        except Exception as error:
            log.exception("request_failed", path=scope["path"])
            if has_begun:
                raise  # the answer has begun: the server closes the connection
            response = await answer_problem(Request(scope), error)
            await response(scope, receive, send)


class Head:
    """Innermost: answer HEAD as GET without its body, which RFC 9110 asks of every resource."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_headers(message: Message) -> None:
            # A stream of events has no end: the server cancels it once the answer is complete.
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b""})

        as_get = {**scope, "method": "GET"}
        await self.app(as_get, receive, send_headers)
        scope["route"] = as_get.get("route")


class Gate:
    """Reject requests without a caller, and apply rate limits.

    A caller has a token, a JWT, a page's key, or the cookie of a signed-in browser. Requests with a
    cookie that change something must come from one of our pages and have a CSRF token. The health
    report, the pages' files and the sign-in need no authentication.

    WebSockets are not checked here but by their route: an error that a viewer can show needs the
    handshake first.
    """

    def __init__(
        self,
        app: ASGIApp,
        authenticator: Authenticator,
        limiter: RateLimiter,
        rules: BrowserRules,
    ) -> None:
        self.app = app
        self.authenticator = authenticator
        self.limiter = limiter
        self.rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_open(scope):
            try:
                caller = await self._caller(scope)
                check_scope(caller, scope["method"], scope["path"])
                self.limiter.take(caller.counted_as)
            except (Error, HTTPException) as refusal:
                response = await answer_problem(Request(scope), refusal)
                if isinstance(refusal, NotAuthenticated):
                    self.rules.forget_cookie(scope, response)
                await response(scope, receive, send)
                return
            scope["state"]["caller"] = caller
        await self.app(scope, receive, send)

    async def _caller(self, scope: Scope) -> Caller:
        headers = Headers(scope=scope)
        authorization, access_token = _credentials(scope)
        cookie = self.rules.cookie_of(scope)
        if cookie is None or access_token or is_bearer(authorization):
            return await self.authenticator.caller(authorization, access_token, *asked_from(scope))
        if scope["method"] not in SAFE_METHODS:
            self.rules.check_is_own(headers, cookie)
        elif scope["path"].startswith(API_PREFIX):  # some of these start something
            self.rules.check_is_no_other_site(headers)
        caller = await self.authenticator.counted(
            self.authenticator.of_cookie(cookie), *asked_from(scope)
        )
        scope["state"]["cookie"] = cookie
        return caller


def _credentials(scope: Scope) -> tuple[str | None, str | None]:
    """Return the Authorization header, and the token in the query of paths that allow one."""
    in_query = QUERY_TOKEN_PATHS.fullmatch(scope["path"])
    query = QueryParams(scope["query_string"]) if in_query else QueryParams()
    return Headers(scope=scope).get("authorization"), query.get("access_token")


def request_id_of(headers: Headers) -> str:
    """Return the id that the client sent, if it is safe to log, else a new one."""
    given = headers.get(REQUEST_ID, "")
    return given if REQUEST_ID_FORM.fullmatch(given) else uuid.uuid4().hex

"""Answer errors as RFC 9457 problem details; the only place that does."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Protocol

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from polydev.controller.store.users import TokenNotFound
from polydev.controller.usage_quotas import QuotaExceeded
from polydev.errors import (
    AccessError,
    AgentError,
    CapacityError,
    CredentialsError,
    CredentialsLocked,
    CredentialsNotFound,
    DeliveryNotFound,
    DeploymentNotFound,
    EndpointNotFound,
    Error,
    ImageError,
    ImageNotFound,
    ImageUnreadable,
    LoginRefused,
    NoCredentialsKey,
    NoScreen,
    NotAllowed,
    NotAuthenticated,
    SessionError,
    SessionExpired,
    SessionNotFound,
    TooManySessions,
    UserNotFound,
    VmError,
    WebhookError,
    WrongProvider,
)

MEDIA_TYPE = "application/problem+json"
NO_PAGES = ("/api/", "/docs", "/openapi.json", "/metrics", "/static/")
CHALLENGE = 'Bearer realm="polydev"'
RETRY_SECONDS = 5
MOST_ERRORS = 20
MOST_CHARACTERS = 1000
UNPROCESSABLE = HTTPStatus(422)  # its name changed with Python 3.13
# SQLAlchemy raises these if the database does not answer, or not in time.
DATABASE_ERRORS = (OperationalError, InterfaceError, PoolTimeout)


class Unavailable(Error):
    """A dependency of the answer is down."""

    code = "unavailable"


class NoCapacity(CapacityError):
    """No free slot; `members` tell an operator which session to end."""

    def __init__(self, cause: CapacityError, slots: int, oldest_idle: str | None) -> None:
        super().__init__(cause.message, cause.hint)
        self.members = {"slots": slots, "oldestIdleSession": oldest_idle}


# The status of each kind of Error; of its base where a kind is not named.
STATUSES: dict[type[Error], HTTPStatus] = {
    SessionError: HTTPStatus.CONFLICT,
    SessionNotFound: HTTPStatus.NOT_FOUND,
    SessionExpired: HTTPStatus.GONE,
    UserNotFound: HTTPStatus.NOT_FOUND,
    TokenNotFound: HTTPStatus.NOT_FOUND,
    WrongProvider: UNPROCESSABLE,
    TooManySessions: HTTPStatus.CONFLICT,
    QuotaExceeded: HTTPStatus.TOO_MANY_REQUESTS,
    CapacityError: HTTPStatus.SERVICE_UNAVAILABLE,
    ImageNotFound: HTTPStatus.NOT_FOUND,
    ImageUnreadable: HTTPStatus.INTERNAL_SERVER_ERROR,
    ImageError: HTTPStatus.SERVICE_UNAVAILABLE,
    DeploymentNotFound: HTTPStatus.NOT_FOUND,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    CredentialsError: HTTPStatus.CONFLICT,
    CredentialsNotFound: HTTPStatus.NOT_FOUND,
    CredentialsLocked: HTTPStatus.CONFLICT,
    NoCredentialsKey: HTTPStatus.SERVICE_UNAVAILABLE,
    WebhookError: HTTPStatus.CONFLICT,
    DeliveryNotFound: HTTPStatus.NOT_FOUND,
    EndpointNotFound: HTTPStatus.NOT_FOUND,
    AccessError: HTTPStatus.FORBIDDEN,
    NotAuthenticated: HTTPStatus.UNAUTHORIZED,
    NotAllowed: HTTPStatus.FORBIDDEN,
    AgentError: HTTPStatus.BAD_GATEWAY,
    LoginRefused: HTTPStatus.CONFLICT,
    NoScreen: HTTPStatus.CONFLICT,
    VmError: HTTPStatus.BAD_GATEWAY,
    Error: HTTPStatus.INTERNAL_SERVER_ERROR,
}


class InvalidInput(BaseModel):
    """An invalid value; `pointer` is its place in the request."""

    pointer: str
    detail: str


class Problem(BaseModel):
    """`type` is urn:polydev:error:<code> for this project's own errors, else about:blank.

    `error` repeats `detail` for older clients. Some types have more members.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="allow")

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    error: str
    instance: str
    request_id: str
    hint: str | None = None
    errors: list[InvalidInput] | None = None


class ProblemPages(Protocol):
    """Renders a problem as a page."""

    def problem(self, request: Request, problem: Problem) -> Response: ...


async def answer_problem(request: Request, error: Exception) -> Response:
    """Answer an error: with a page if a browser asked for one, else with problem details."""
    problem = problem_of(error, request.url.path, request.state.request_id)
    pages: ProblemPages | None = request.app.state.pages
    if pages is not None and wants_page(request):
        page = pages.problem(request, problem)
        page.headers.update(headers_of(error, problem.status))
        return page
    return JSONResponse(
        problem.model_dump(by_alias=True, exclude_none=True),
        problem.status,
        headers=headers_of(error, problem.status),
        media_type=MEDIA_TYPE,
    )


def wants_page(request: Request) -> bool:
    """Whether a browser wants a page: not a script that wants data, nor htmx that wants a part."""
    return (
        not request.url.path.startswith(NO_PAGES)
        and "text/html" in request.headers.get("accept", "")
        and "hx-request" not in request.headers
    )


def headers_of(error: Exception, status: int) -> dict[str, str]:
    """Return the headers of the answer: how to authenticate, or when to try again."""
    if isinstance(error, HTTPException) and error.headers:
        return dict(error.headers)
    if isinstance(error, QuotaExceeded):
        return {"Retry-After": str(error.retry_after_seconds)}
    if status == HTTPStatus.UNAUTHORIZED:
        return {"WWW-Authenticate": CHALLENGE}
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return {"Retry-After": str(RETRY_SECONDS)}
    return {}


def problem_of(error: Exception, path: str, request_id: str) -> Problem:
    """Return the problem details of `error`; unexpected errors reveal only the request's id."""
    status = _status_of(error)
    told: dict[str, Any] = {"title": status.phrase, "status": status.value}
    if isinstance(error, Error):
        told |= {"type": f"urn:polydev:error:{error.code}", "detail": _cut(error.message)}
        told |= {"hint": error.hint, **_members(error)}
    elif isinstance(error, RequestValidationError):
        refused = error.errors()
        told["detail"] = _summary(len(refused))
        told["errors"] = [_refused_input(each) for each in refused[:MOST_ERRORS]]
    elif isinstance(error, HTTPException):
        told["detail"] = _http_detail(error, status)
    elif isinstance(error, DATABASE_ERRORS):
        told["detail"] = "the database does not answer"
    else:
        told["detail"] = (
            "unexpected error: the controller's log has the cause under this request's ID"
        )
    return Problem(error=told["detail"], instance=path, request_id=request_id, **told)


def _members(error: Error) -> Mapping[str, Any]:
    return error.members if isinstance(error, NoCapacity | QuotaExceeded) else {}


def _status_of(error: Exception) -> HTTPStatus:
    if isinstance(error, Error):
        return next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)
    if isinstance(error, RequestValidationError):
        return UNPROCESSABLE
    if isinstance(error, HTTPException):
        return HTTPStatus(error.status_code)
    if isinstance(error, DATABASE_ERRORS):
        return HTTPStatus.SERVICE_UNAVAILABLE
    return HTTPStatus.INTERNAL_SERVER_ERROR


def _http_detail(error: HTTPException, status: HTTPStatus) -> str:
    if error.detail and error.detail != status.phrase:
        return _cut(error.detail)
    if status == HTTPStatus.NOT_FOUND:
        return "there is nothing at this address"
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        return "this method is not allowed at this address"
    return status.phrase


def _summary(errors: int) -> str:
    if errors <= MOST_ERRORS:
        return "the request is not valid"
    return f"the request is not valid: {errors} errors, of which these are the first {MOST_ERRORS}"


def _refused_input(refused: Mapping[str, Any]) -> InvalidInput:
    # Without the value, which may be a secret.
    pointer = "/".join(str(part) for part in refused["loc"])
    return InvalidInput(pointer=_cut(pointer), detail=_cut(_words(refused)))


def _cut(text: str) -> str:
    """Shorten a text that may quote a long value of the caller."""
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"


def _words(refused: Mapping[str, Any]) -> str:
    if refused["type"] == "uuid_parsing":  # pydantic's message would quote a part of it
        return "Input should be a valid UUID"
    if refused["type"] == "model_attributes_type" and refused["loc"] == ("body",):
        return "must be a JSON object, sent with the header Content-Type: application/json"
    return str(refused["msg"])

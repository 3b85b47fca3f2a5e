"""The error responses of each call, for the documentation: each status with an example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polydev.controller.api.json_route import UNREADABLE_BODY
from polydev.controller.problem_details import MEDIA_TYPE, Problem

SCHEMA_PATH = "#/components/schemas"
# Any call but health may be answered with these.
GATE = (401, 403, 413, 429, 503)

_SESSION = "/api/auth/session/5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01"
_ANY = {
    "instance": _SESSION,
    "requestId": "0f5c8f0e7b7b4c3f9d0c1a2b3c4d5e6f",
}
_EXAMPLES: Mapping[int, tuple[str, dict[str, Any]]] = {
    400: (
        "The body cannot be read",
        {"title": "Bad Request", "detail": UNREADABLE_BODY},
    ),
    401: (
        "No token, or one that is not accepted",
        {
            "type": "urn:polydev:error:not-authenticated",
            "title": "Unauthorized",
            "detail": "the token has expired",
            "hint": "send Authorization: Bearer <a JWT of the identity provider>",
        },
    ),
    403: (
        "The caller has no access",
        {
            "type": "urn:polydev:error:not-allowed",
            "title": "Forbidden",
            "detail": "access denied: the session belongs to another user",
        },
    ),
    404: (
        "Not found",
        {
            "type": "urn:polydev:error:session-not-found",
            "title": "Not Found",
            "detail": "there is no session 5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01",
        },
    ),
    409: (
        "The user has as many sessions as are allowed, or the idempotency key was used before",
        {
            "type": "urn:polydev:error:too-many-sessions",
            "title": "Conflict",
            "detail": "the user has 2 sessions, which is all that is allowed",
            "hint": "end one of them",
        },
    ),
    410: (
        "It has ended",
        {
            "type": "urn:polydev:error:session-expired",
            "title": "Gone",
            "detail": "the session's VM has ended: terminated",
            "hint": "start another session",
        },
    ),
    413: (
        "The body is too large",
        {
            "title": "Content Too Large",
            "detail": "the body is too large: at most 1048576 bytes are allowed",
        },
    ),
    422: (
        "The request is not valid; the answer repeats none of its values",
        {
            "title": "Unprocessable Content",
            "detail": "the request is not valid",
            "errors": [{"pointer": "path/session_id", "detail": "Input should be a valid UUID"}],
        },
    ),
    429: (
        "Too many requests of this caller; Retry-After says when to try again",
        {"title": "Too Many Requests", "detail": "too many requests: wait 1 s"},
    ),
    502: (
        "The VM's agent does not answer correctly, or the tool's login did not start",
        {
            "type": "urn:polydev:error:agent-unreachable",
            "title": "Bad Gateway",
            "detail": "its agent did not answer within 10 s",
        },
    ),
    503: (
        "No slot is free, or a dependency is down; Retry-After says when to try again",
        {
            "type": "urn:polydev:error:no-free-slot",
            "title": "Service Unavailable",
            "detail": "all 8 slots are in use",
            "hint": "end a session that nobody uses",
            "slots": 8,
            "oldestIdleSession": "5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01",
        },
    ),
}


def error_responses(
    *statuses: int, own: Mapping[int, tuple[str, dict[str, Any]]] | None = None
) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route: these statuses, and those of any call.

    `own` adds or replaces statuses, each with a description and an example.
    """
    words = {**_EXAMPLES, **(own or {})}
    return {
        status: _refusal(status, *words[status])
        for status in sorted({*GATE, *statuses, *(own or {})})
    }


def _refusal(status: int, description: str, told: dict[str, Any]) -> dict[str, Any]:
    example = {"type": "about:blank", "status": status, "error": told["detail"], **_ANY, **told}
    schema = {"$ref": f"{SCHEMA_PATH}/Problem"}
    return {
        "description": description,
        "content": {MEDIA_TYPE: {"schema": schema, "example": example}},
    }


def problem_schemas() -> dict[str, Any]:
    """Return the schemas that all error responses refer to, by name."""
    schema = Problem.model_json_schema(ref_template=f"{SCHEMA_PATH}/{{model}}")
    return {**schema.pop("$defs", {}), "Problem": schema}

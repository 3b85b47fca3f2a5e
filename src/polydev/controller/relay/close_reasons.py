"""Reasons to close a viewer's connection: WebSocket close codes, and words to show."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.exceptions import HTTPException

from polydev.controller.auth.revocation_watch import NOT_OPERATOR
from polydev.controller.entities import Session, Vm
from polydev.controller.problem_details import DATABASE_ERRORS, Unavailable
from polydev.errors import (
    Error,
    NotAllowed,
    NotAuthenticated,
    SessionExpired,
    SessionNotFound,
)

NORMAL = 1000
GOING_AWAY = 1001
UNSUPPORTED_DATA = 1003
VANISHED = 1006  # for logs only: the viewer is gone, so nothing can be sent
POLICY_VIOLATION = 1008
INTERNAL_ERROR = 1011
TRY_AGAIN_LATER = 1013
NOT_AUTHENTICATED = 4401
NOT_ALLOWED = 4403
UNKNOWN_SESSION = 4404
SESSION_OVER = 4410
NOT_READY = 4425

MOST_REASON_BYTES = 123  # a control frame has at most 125, and the code takes two


@dataclass(frozen=True)
class CloseReason:
    """Code and words for the viewer; `cause` is a stable word for logs and metrics."""

    code: int
    reason: str
    cause: str


class ViewerRefused(Exception):
    """The viewer must not or cannot see the screen; `closing` says why."""

    def __init__(self, closing: CloseReason) -> None:
        super().__init__(closing.reason)
        self.closing = closing


BY_VIEWER = CloseReason(NORMAL, "closed by the viewer", "viewer-closed")
VIEWER_VANISHED = CloseReason(VANISHED, "the viewer's connection broke", "viewer-vanished")
VIEWER_SILENT = CloseReason(INTERNAL_ERROR, "the viewer answered no ping", "viewer-silent")
TOO_MANY_FRAMES = CloseReason(
    POLICY_VIOLATION, "the viewer sends too many messages", "too-many-frames"
)
NOT_BINARY = CloseReason(
    UNSUPPORTED_DATA, "text message received: RFB needs binary messages", "text"
)
RESTARTING = CloseReason(GOING_AWAY, "the service restarts; connect again", "restarting")
VNC_DOWN = CloseReason(INTERNAL_ERROR, "the VM's screen does not answer", "vnc-down")
BRIDGE_DOWN = CloseReason(
    INTERNAL_ERROR,
    "the host's network for VMs is down; ask its operator to repair it",
    "bridge-down",
)
ASLEEP = CloseReason(TRY_AGAIN_LATER, "the paused VM could not be resumed; try again", "asleep")
VM_GONE = CloseReason(INTERNAL_ERROR, "the VM ended the connection to its screen", "vm-gone")
TOO_MANY_VIEWERS = CloseReason(
    TRY_AGAIN_LATER, "this session has too many viewers already", "too-many-viewers"
)
LATER = CloseReason(
    TRY_AGAIN_LATER, "the database does not answer; try again in a moment", "unavailable"
)
UNEXPECTED = CloseReason(
    INTERNAL_ERROR, "internal error; the controller's log has the details", "unexpected"
)


def session_over(session: Session) -> CloseReason:
    reason = f": {session.reason}" if session.reason else ""
    return CloseReason(
        SESSION_OVER, f"the session is over ({session.state}){reason}", "session-over"
    )


def permit_over(reason: str) -> CloseReason:
    """Return why a viewer lost access; `reason` is one of `auth.revocation_watch`."""
    if reason == NOT_OPERATOR:
        return CloseReason(NOT_ALLOWED, reason, "role-over")
    return CloseReason(NOT_AUTHENTICATED, reason, "token-over")


def not_ready(vm: Vm) -> CloseReason:
    stage = f"boot stage: {vm.stage}" if vm.stage != "none" else "it is starting"
    return CloseReason(NOT_READY, f"the VM is not ready yet; {stage}", "not-ready")


def close_reason_for(error: Exception) -> CloseReason:
    """Return what a viewer is told about an error, with no details of an unexpected one."""
    if isinstance(error, ViewerRefused):
        return error.closing
    if isinstance(error, Unavailable):
        return CloseReason(TRY_AGAIN_LATER, error.message, error.code)
    if isinstance(error, Error):
        code = next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), None)
        return CloseReason(code, error.message, error.code) if code else UNEXPECTED
    if isinstance(error, HTTPException):  # 429: the viewer may try again
        return CloseReason(TRY_AGAIN_LATER, str(error.detail), "too-often")
    return LATER if isinstance(error, DATABASE_ERRORS) else UNEXPECTED


_CODES: dict[type, int] = {
    NotAuthenticated: NOT_AUTHENTICATED,
    NotAllowed: NOT_ALLOWED,
    SessionNotFound: UNKNOWN_SESSION,
    SessionExpired: SESSION_OVER,
}

"""How a viewer's connection ends: codes that a peer may send, with words that a viewer can show."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.exceptions import HTTPException

from polydev.controller.auth.token_watch import NOT_OPERATOR
from polydev.controller.model import Session, Vm
from polydev.controller.problems import DATABASE_ERRORS, Unavailable
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
VANISHED = 1006  # only ever written in logs: it says that nothing could be sent
POLICY_VIOLATION = 1008
INTERNAL_ERROR = 1011
TRY_AGAIN_LATER = 1013
NOT_AUTHENTICATED = 4401
NOT_ALLOWED = 4403
UNKNOWN_SESSION = 4404
SESSION_OVER = 4410
NOT_READY = 4425

MOST_REASON_BYTES = 123  # a control frame has 125 at most, and the code takes two


@dataclass(frozen=True)
class CloseReason:
    """`cause` is a stable word for logs and figures."""

    code: int
    reason: str
    cause: str


class ViewerRefused(Exception):
    """A viewer cannot have what it asks for."""

    def __init__(self, closing: CloseReason) -> None:
        super().__init__(closing.reason)
        self.closing = closing


BY_VIEWER = CloseReason(NORMAL, "closed by the viewer", "viewer-closed")
VIEWER_VANISHED = CloseReason(VANISHED, "the viewer is gone without a word", "viewer-vanished")
VIEWER_SILENT = CloseReason(INTERNAL_ERROR, "the viewer answered no ping", "viewer-silent")
TOO_MANY_FRAMES = CloseReason(
    POLICY_VIOLATION, "the viewer sends too many messages", "too-many-frames"
)
NOT_BINARY = CloseReason(UNSUPPORTED_DATA, "the screen's protocol is binary", "text")
RESTARTING = CloseReason(GOING_AWAY, "the service restarts; connect again", "restarting")
VNC_DOWN = CloseReason(INTERNAL_ERROR, "the VM's screen does not answer", "vnc-down")
BRIDGE_DOWN = CloseReason(
    INTERNAL_ERROR, "the host's network of VMs is down; its operators can mend it", "bridge-down"
)
ASLEEP = CloseReason(TRY_AGAIN_LATER, "the VM is paused and does not wake; try again", "asleep")
VM_GONE = CloseReason(INTERNAL_ERROR, "the VM ended the connection to its screen", "vm-gone")
TOO_MANY_VIEWERS = CloseReason(
    TRY_AGAIN_LATER, "too many viewers look at this session already", "too-many-viewers"
)
LATER = CloseReason(
    TRY_AGAIN_LATER, "the service cannot look that up now; try again", "unavailable"
)
UNEXPECTED = CloseReason(INTERNAL_ERROR, "an unexpected error; the log has it", "unexpected")


def session_over(session: Session) -> CloseReason:
    reason = f": {session.reason}" if session.reason else ""
    return CloseReason(
        SESSION_OVER, f"the session is over ({session.state}){reason}", "session-over"
    )


def permit_over(reason: str) -> CloseReason:
    """`reason` is one of token_watch."""
    if reason == NOT_OPERATOR:
        return CloseReason(NOT_ALLOWED, reason, "role-over")
    return CloseReason(NOT_AUTHENTICATED, reason, "token-over")


def not_ready(vm: Vm) -> CloseReason:
    stage = f"it has come to: {vm.stage}" if vm.stage != "none" else "it is being started"
    return CloseReason(NOT_READY, f"the VM is not ready yet; {stage}", "not-ready")


def closing_of(error: Exception) -> CloseReason:
    """What a viewer is told of `error`; nothing of what is unexpected."""
    if isinstance(error, ViewerRefused):
        return error.closing
    if isinstance(error, Unavailable):
        return CloseReason(TRY_AGAIN_LATER, error.message, error.code)
    if isinstance(error, Error):
        code = next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), None)
        return CloseReason(code, error.message, error.code) if code else UNEXPECTED
    if isinstance(error, HTTPException):  # 429, which is no refusal for good
        return CloseReason(TRY_AGAIN_LATER, str(error.detail), "too-often")
    return LATER if isinstance(error, DATABASE_ERRORS) else UNEXPECTED


_CODES: dict[type, int] = {
    NotAuthenticated: NOT_AUTHENTICATED,
    NotAllowed: NOT_ALLOWED,
    SessionNotFound: UNKNOWN_SESSION,
    SessionExpired: SESSION_OVER,
}

"""States of sessions and VMs, and the transitions between them; pure."""

from __future__ import annotations

from typing import Literal, get_args

from polydev.errors import SessionExpired

SessionState = Literal[
    "vm_creating",
    "vm_starting",
    "vm_created",
    "oauth_pending",
    "authenticated",
    "completed",
    "failed",
    "expired",
    "terminated",
]
SessionEvent = Literal[
    "vm_launched",
    "vm_ready",
    "oauth_started",
    "oauth_done",
    "injected",
    "complete",
    "fail",
    "expire",
    "terminate",
]
LoginStatus = Literal["none", "starting", "waiting", "done", "failed"]
# State of the user's stored credentials in a session that uses them.
Injection = Literal["wanted", "injected", "refused"]
VmState = Literal["creating", "starting", "ready", "stopping", "ended", "failed"]

SESSION_STATES: tuple[SessionState, ...] = get_args(SessionState)
SESSION_EVENTS: tuple[SessionEvent, ...] = get_args(SessionEvent)
VM_STATES: tuple[VmState, ...] = get_args(VmState)

SESSION_ENDS: frozenset[SessionState] = frozenset(("completed", "failed", "expired", "terminated"))
LIVE_SESSION_STATES = tuple(state for state in SESSION_STATES if state not in SESSION_ENDS)
# A VM that is stopping, or has not been released, still holds its slot.
LIVE_VM_STATES: tuple[VmState, ...] = ("creating", "starting", "ready")

_STEPS: dict[tuple[SessionState, SessionEvent], SessionState] = {
    ("vm_creating", "vm_launched"): "vm_starting",
    ("vm_starting", "vm_ready"): "vm_created",
    ("vm_created", "oauth_started"): "oauth_pending",
    ("oauth_pending", "oauth_done"): "authenticated",
    ("vm_created", "injected"): "authenticated",
    ("authenticated", "complete"): "completed",
}
_ENDS: dict[SessionEvent, SessionState] = {
    "fail": "failed",
    "expire": "expired",
    "terminate": "terminated",
}


# The events of a session that a tool's login causes. A login that is done does not complete the
# session: its credentials must be handed over first.
_LOGIN_EVENTS: dict[tuple[SessionState, LoginStatus], tuple[SessionEvent, ...]] = {
    ("vm_created", "starting"): ("oauth_started",),
    ("vm_created", "waiting"): ("oauth_started",),
    ("vm_created", "done"): ("oauth_started",),
}


def is_live(state: SessionState) -> bool:
    return state not in SESSION_ENDS


def next_state(state: SessionState, event: SessionEvent) -> SessionState:
    """Return the state after `event`. Raises SessionExpired if the session is over, and ValueError,
    which is a bug, if the event is not possible in `state`.
    """
    if not is_live(state):
        raise SessionExpired(f"the session is over: {state}", "start another one")
    if event in _ENDS:
        return _ENDS[event]
    if (state, event) not in _STEPS:
        raise ValueError(f"{event} cannot come in {state}")
    return _STEPS[state, event]


def login_events(state: SessionState, login: LoginStatus) -> tuple[SessionEvent, ...]:
    """Return the events of a session whose tool's login has this status."""
    return _LOGIN_EVENTS.get((state, login), ())

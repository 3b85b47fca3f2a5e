"""The states of a session as pure code."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polydev.controller.session_and_vm_states import (
    LIVE_SESSION_STATES,
    SESSION_ENDS,
    SESSION_EVENTS,
    SESSION_STATES,
    LoginStatus,
    SessionEvent,
    SessionState,
    is_live,
    login_events,
    next_state,
)
from polydev.errors import SessionExpired

EVENTS = st.lists(st.sampled_from(SESSION_EVENTS), max_size=30)
PATH: tuple[tuple[SessionEvent, SessionState], ...] = (
    ("vm_launched", "vm_starting"),
    ("vm_ready", "vm_created"),
    ("oauth_started", "oauth_pending"),
    ("oauth_done", "authenticated"),
    ("complete", "completed"),
)


def test_states_of_a_successful_session() -> None:
    state: SessionState = "vm_creating"
    for event, expected in PATH:
        state = next_state(state, event)
        assert state == expected


@pytest.mark.parametrize("state", SESSION_STATES)
@pytest.mark.parametrize("event", SESSION_EVENTS)
def test_next_state_for_every_event_in_every_state(
    state: SessionState, event: SessionEvent
) -> None:
    ends = {"fail": "failed", "expire": "expired", "terminate": "terminated"}
    steps = {
        (before, event): after
        for (event, after), before in zip(
            PATH, ("vm_creating", *(after for _event, after in PATH)), strict=False
        )
    }
    if state in SESSION_ENDS:
        with pytest.raises(SessionExpired, match=f"the session is over: {state}"):
            next_state(state, event)
    elif event in ends:
        assert next_state(state, event) == ends[event]
    elif (state, event) == ("vm_created", "injected"):
        assert next_state(state, event) == "authenticated"
    elif (state, event) in steps:
        assert next_state(state, event) == steps[state, event]
    else:
        with pytest.raises(ValueError, match=f"{event} cannot come in {state}"):
            next_state(state, event)


@given(EVENTS)
def test_states_never_repeat_and_ends_are_final(events: list[SessionEvent]) -> None:
    state: SessionState = "vm_creating"
    seen = [state]
    for event in events:
        try:
            state = next_state(state, event)
        except ValueError:
            assert is_live(state)
            continue
        except SessionExpired:
            assert state in SESSION_ENDS
            continue
        assert is_live(seen[-1])
        seen.append(state)
    assert len(set(seen)) == len(seen)
    order = [SESSION_STATES.index(each) for each in seen]
    assert order == sorted(order)


def test_live_and_end_states_are_all_states() -> None:
    assert set(LIVE_SESSION_STATES) | SESSION_ENDS == set(SESSION_STATES)
    assert set(LIVE_SESSION_STATES).isdisjoint(SESSION_ENDS)


@pytest.mark.parametrize("state", LIVE_SESSION_STATES)
@pytest.mark.parametrize("login", get_args(LoginStatus))
def test_login_moves_a_session_forward_once(state: SessionState, login: LoginStatus) -> None:
    for event in login_events(state, login):
        state = next_state(state, event)
    assert login_events(state, login) == ()
    # The handover of its credentials comes first and is an event of its own.
    assert state != "authenticated" or login_events("authenticated", login) == ()
    if login == "done":
        assert state != "vm_created"

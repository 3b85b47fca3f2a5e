"""The types of webhook events, and the body of a message. Pure."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Literal, get_args

from polydev.controller.session_and_vm_states import SessionState

EventType = Literal[
    "session.created",
    "session.ready",
    "session.login_waiting",
    "session.authenticated",
    "session.completed",
    "session.failed",
    "session.expired",
    "session.terminated",
    "credentials.ready",
    "credentials.removed",
]
EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)
# The type of test messages, which endpoints need not subscribe to.
TEST_TYPE = "webhook.test"

# A body has no other keys, so no secret can get into it.
DATA_KEYS = frozenset(("sessionId", "userId", "provider", "state"))

# The event for a session's change to each state; other changes have none.
SESSION_EVENTS: Mapping[SessionState, EventType] = {
    "vm_creating": "session.created",
    "vm_created": "session.ready",
    "authenticated": "session.authenticated",
    "completed": "session.completed",
    "failed": "session.failed",
    "expired": "session.expired",
    "terminated": "session.terminated",
}


def new_message_id() -> str:
    """Return a new `webhook-id`, without a full stop, which separates parts of the signed text."""
    return f"msg_{uuid.uuid4().hex}"


def body_of(kind: str, at: datetime, data: Mapping[str, str | None]) -> str:
    """Return a message as compact JSON. Each attempt signs and sends the same text.

    Raises ValueError, which is a bug, for data that no message may carry.
    """
    if extra := data.keys() - DATA_KEYS:
        raise ValueError(f"a webhook may not carry {', '.join(sorted(extra))}")
    time = at.astimezone(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")
    message = {"type": kind, "timestamp": time, "data": dict(data)}
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"))

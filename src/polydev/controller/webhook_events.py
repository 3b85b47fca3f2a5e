"""What endpoints may be told of, and the body of such a message. Pure."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Literal, get_args

from polydev.controller.states import SessionState

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
# Of an operator's trial only; no endpoint has to subscribe to it.
TEST_TYPE = "webhook.test"

# Nothing else gets into a body, so no secret can: no tool's own words, no address, no key.
DATA_KEYS = frozenset(("sessionId", "userId", "provider", "state"))

# A session's way from one state to the next that is worth a message.
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
    """Return a `webhook-id`: it has no full stop, which is what parts the signed text."""
    return f"msg_{uuid.uuid4().hex}"


def body_of(kind: str, at: datetime, data: Mapping[str, str | None]) -> str:
    """Return a message as compact JSON: it is signed and sent as it is, however often.

    Raises ValueError, which is a bug, for data that no message may carry.
    """
    if extra := data.keys() - DATA_KEYS:
        raise ValueError(f"a webhook may not carry {', '.join(sorted(extra))}")
    time = at.astimezone(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")
    message = {"type": kind, "timestamp": time, "data": dict(data)}
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"))

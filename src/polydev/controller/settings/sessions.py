"""Settings of sessions and of the logins of their tools."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from polydev.controller.settings.shared_types import MOST_SECONDS, Seconds, Section

# The longest pause between two heartbeats of a session that has a viewer.
WATCHED_SECONDS = 10.0


class SessionLimits(Section):
    """Limits of the number of a user's sessions and of their lifetime.

    idle_seconds    after its last viewer or heartbeat
    max_seconds     at most, however it is used
    heartbeat_live_seconds  how long a heartbeat counts as a sign of life
    """

    per_user: int = Field(default=2, ge=1)
    idle_seconds: Seconds = 300
    max_seconds: Seconds = 4 * 3600
    heartbeat_live_seconds: Seconds = 30


class LoginSettings(Section):
    """Logins of sessions' tools.

    complete_after_seconds  how long after its credentials were handed over a session is completed,
                            which destroys its VM; null: not by itself
    """

    complete_after_seconds: Annotated[float, Field(ge=0, le=MOST_SECONDS)] | None = 10

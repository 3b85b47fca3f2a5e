"""Quotas of users, and limits of requests and connections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from pydantic import Field, field_validator

from polydev.controller.entities import Role
from polydev.controller.settings.shared_types import MOST_SECONDS, Seconds, Section


class Quota(Section):
    """A user's limits for a day or month of UTC; beyond them no session starts. 0: no limit.

    Traffic is what the user's VMs receive and send.
    """

    vm_hours_per_day: float = Field(default=0, ge=0, le=MOST_SECONDS)
    vm_hours_per_month: float = Field(default=0, ge=0, le=MOST_SECONDS)
    cpu_hours_per_day: float = Field(default=0, ge=0, le=MOST_SECONDS)
    traffic_gib_per_day: float = Field(default=0, ge=0, le=MOST_SECONDS)


class Quotas(Quota):
    """The quota of all users. A quota of a role overrides it, and one of a user overrides both."""

    by_role: Mapping[Role, Quota] = Field(default_factory=dict)
    by_user: Mapping[UUID, Quota] = Field(default_factory=dict)

    @field_validator("by_user", mode="before")
    @classmethod
    def _check_users(cls, quotas: Any) -> Any:
        """Reject two forms of one id: the quota that comes last would count."""
        ids = [str(each).lower().replace("-", "") for each in quotas or ()]
        if len(set(ids)) < len(ids):
            raise ValueError("names a user twice")
        return quotas

    def of(self, user_id: str, role: Role) -> Quota:
        """Return the quota of one user."""
        named: dict[str, float] = {}
        for each in (self, self.by_role.get(role), self.by_user.get(UUID(user_id))):
            if each is not None:
                named |= each.model_dump(exclude_unset=True, include=set(Quota.model_fields))
        return Quota(**named)

    @property
    def are_set(self) -> bool:
        """Whether anybody has a limit."""
        given = (self, *self.by_role.values(), *self.by_user.values())
        return any(getattr(each, name) for each in given for name in Quota.model_fields)


# With less, one request would take more than years.
LEAST_RATE = 0.001


class RateLimits(Section):
    """Requests of one caller: how many on average, and how many at once (`burst`).

    starts_*        starts of sessions
    credentials_*   requests that use credentials, each of which is logged
    streams         event streams and followed consoles that one user may read at once
    failures_*      failed logins from one address
    """

    requests_per_second: float = Field(default=50, ge=LEAST_RATE)
    burst: int = Field(default=200, ge=1)
    starts_per_minute: float = Field(default=30, ge=LEAST_RATE)
    starts_burst: int = Field(default=10, ge=1)
    credentials_per_minute: float = Field(default=60, ge=LEAST_RATE)
    credentials_burst: int = Field(default=200, ge=1)
    streams: int = Field(default=32, ge=1)
    failures_per_minute: float = Field(default=30, ge=LEAST_RATE)
    failures_burst: int = Field(default=20, ge=1)


class ConnectionLimits(Section):
    """Limits of a connection until its request is complete, and while its answer is sent.

    header_seconds, body_seconds    by when the whole header, and then the whole body, must be there
    send_seconds                    by when a client must have read what was sent
    most                            open connections
    unfinished                      open connections without a complete request
    unfinished_per_address          the same, of one IPv4 address or IPv6 network
    """

    header_seconds: Seconds = 10
    body_seconds: Seconds = 60
    send_seconds: Seconds = 60
    most: int = Field(default=4096, ge=1)
    unfinished: int = Field(default=1024, ge=1)
    unfinished_per_address: int = Field(default=256, ge=1)

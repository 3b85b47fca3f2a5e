"""The nouns of the controller, as frozen values: a row of the database becomes one of these.

Times are UTC with their zone. Names are those of the database; `api` says them in camel case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from ipaddress import IPv4Network
from typing import Literal

from polydev.controller.states import (
    LIVE_VM_STATES,
    Injection,
    LoginStatus,
    SessionState,
    VmState,
    is_live,
)
from polydev.vm.boot_stages import Stage

Role = Literal["admin", "operator", "user"]
Severity = Literal["warning", "critical"]
SEE_ALL: tuple[Role, ...] = ("admin", "operator")
"""Roles that may see and end what is other users'."""


def now() -> datetime:
    return datetime.now(timezone.utc)


def slot_address(network: IPv4Network, slot: int) -> str:
    """The address by which a slot's VM is known outside; the only place that computes it."""
    return str(network[slot])


@dataclass(frozen=True)
class User:
    id: str
    role: Role
    name: str | None
    created_at: datetime


@dataclass(frozen=True)
class Caller:
    """Who asks: a user, and how that is known.

    by           `cookie` of a browser that is signed in, `key` of a page that shows one session,
                 `ticket` of one connection to a screen
    expires_at   when what they showed ends by itself
    token_id     of an operator's token, which somebody may revoke; also of what was made by it
    sign_in_id   of a browser or a page, which somebody may sign out
    session_id   the only session that they may have, None where it is all of the user's
    view_only    whether they may look at its screen only
    """

    user_id: str
    role: Role
    by: Literal["jwt", "token", "cookie", "key", "ticket"]
    expires_at: datetime | None = None
    token_id: str | None = None
    sign_in_id: str | None = None
    session_id: str | None = None
    view_only: bool = False

    @property
    def sees_all(self) -> bool:
        return self.role in SEE_ALL

    @property
    def counted_as(self) -> str:
        """Whose limits this counts to: spectators must not use up those of who invited them."""
        return f"{self.user_id} {self.sign_in_id}" if self.view_only else self.user_id


@dataclass(frozen=True)
class Token:
    """An operator's token, as it may be shown: the token itself is stored hashed only."""

    id: str
    user_id: str
    name: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    used_at: datetime | None


# Why a VM boots that nobody has to be told of: the next ones will be resumed.
BEING_MADE = "its template is being made"


@dataclass(frozen=True)
class Vm:
    """A VM of a slot. It holds the slot, and with it `vm_ip`, until `released_at`.

    stage       how far the boot has come; `stage_at` since when
    timings     seconds from the start of the unit to each stage reached
    reason      why it failed; with `failed_units` and `serial_tail` of that moment
    failed_checks   health checks failed in a row
    image_digest    what it boots, or what its template was made of
    template    what it was, or is to be, resumed from, instead of a boot
    boots_because   why it boots although templates are in use
    receipt     what a clone's guest said of its identity, before it was anybody's
    pooled      whether it waits in the pool for a session: without identity, and paused when ready
    used_at     when a viewer, or somebody who asked its agent, needed it last
    paused_at   since when its processors stand
    """

    id: str
    slot: int
    vm_ip: str
    state: VmState
    stage: Stage
    stage_at: datetime
    image_digest: str
    created_at: datetime
    started_at: datetime | None = None
    ready_at: datetime | None = None
    ended_at: datetime | None = None
    released_at: datetime | None = None
    reason: str | None = None
    failed_units: tuple[str, ...] = ()
    serial_tail: str | None = None
    failed_checks: int = 0
    timings: Mapping[str, float] = field(default_factory=dict)
    template: str | None = None
    boots_because: str | None = None
    receipt: Mapping[str, object] | None = None
    pooled: bool = False
    used_at: datetime | None = None
    paused_at: datetime | None = None

    @property
    def is_for_sessions(self) -> bool:
        """Whether it waits in the pool, or is being made for it, so that a session may take it."""
        return self.pooled and self.state in LIVE_VM_STATES

    @property
    def is_primed(self) -> bool:
        """Whether it waits in the pool, paused, so that a session that takes it starts at once."""
        return self.pooled and self.state == "ready"


@dataclass(frozen=True)
class CredentialsReceipt:
    """A receipt for credentials that were handed over: `sha256` is of their compact JSON,
    `recipient` the key of age to which they are sealed, None where the host seals them.
    """

    provider: str
    at: datetime
    sha256: str
    recipient: str | None


@dataclass(frozen=True)
class Session:
    """A user's use of a VM. `reason` says why it ended, where that was not the user's wish.

    login           how far the tool's login was when that was told last
    login_detail    why the login failed, or why no credentials are kept or injected
    recipient       the age recipient to which the credentials are to be sealed
    stored_credentials  what becomes of the user's stored ones; None where they are not asked for
    credentials_sha256, credentials_at   of those that were handed over, and when
    wiped_at        when the VM had no copy of these any more
    completes_at    when the session is completed by itself
    """

    id: str
    user_id: str
    provider: str
    state: SessionState
    vm_id: str
    created_at: datetime
    changed_at: datetime
    expires_at: datetime
    heartbeat_at: datetime | None = None
    ended_at: datetime | None = None
    reason: str | None = None
    login: LoginStatus | None = None
    login_detail: str | None = None
    recipient: str | None = None
    stored_credentials: Injection | None = None
    credentials_sha256: str | None = None
    credentials_at: datetime | None = None
    wiped_at: datetime | None = None
    completes_at: datetime | None = None

    @property
    def is_live(self) -> bool:
        return is_live(self.state)

    @property
    def receipt(self) -> CredentialsReceipt | None:
        """The receipt of the credentials that were handed over in this session."""
        if self.credentials_sha256 is None or self.credentials_at is None:
            return None
        return CredentialsReceipt(
            self.provider, self.credentials_at, self.credentials_sha256, self.recipient
        )

    @property
    def waits_for_injection(self) -> bool:
        """Whether the user's stored credentials are still to be given to its VM."""
        return self.stored_credentials == "wanted" and self.state == "vm_created"

    @property
    def waits_for_wiping(self) -> bool:
        """Whether its VM has a copy of credentials that were handed over."""
        return self.is_live and self.credentials_at is not None and self.wiped_at is None

    @property
    def has_login_under_way(self) -> bool:
        """Whether its VM's agent has to be asked or told something about a login."""
        is_pending = self.state == "oauth_pending"
        return is_pending or self.waits_for_injection or self.waits_for_wiping


@dataclass(frozen=True)
class SessionNews:
    """One event of a session; `number` grows, so that a reader can go on where it was."""

    number: int
    session_id: str
    at: datetime
    kind: str
    data: Mapping[str, object]


CredentialEventKind = Literal[
    "stored",
    "read",
    "removed",
    "handed_over",
    "injected",
    "read_back",
    "not_read_back",
    "resealed",
]
CredentialActor = Literal["jwt", "token", "cookie", "key", "ticket", "controller", "operator"]


@dataclass(frozen=True)
class CredentialEvent:
    """One thing that was done with a user's credentials, without what these are.

    by          how its actor was known; `controller` where it did so by itself, `operator` for a
                command on the host
    actor_id    the user who did it, None where that was nobody's request
    """

    id: int
    at: datetime
    user_id: str
    provider: str
    kind: CredentialEventKind
    by: CredentialActor
    actor_id: str | None
    session_id: str | None


@dataclass(frozen=True)
class Alert:
    id: int
    rule: str
    subject: str
    severity: Severity
    message: str
    value: float | None
    raised_at: datetime
    cleared_at: datetime | None

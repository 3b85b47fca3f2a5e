"""The nouns of the controller, as frozen values: each is made of a row of the database.

Times are in UTC. Names are those of the database; the API has them in camel case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Literal

from polydev.controller.session_and_vm_states import (
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
"""Roles that may see and end sessions of other users."""


def now() -> datetime:
    return datetime.now(timezone.utc)


@dataclass(frozen=True)
class User:
    id: str
    role: Role
    name: str | None
    created_at: datetime


@dataclass(frozen=True)
class Caller:
    """The sender of a request: a user, and how the user was authenticated.

    by           `cookie`: a signed-in browser; `key`: the page of one session; `ticket`: one
                 connection to a screen
    expires_at   when the token, cookie, key or ticket expires
    token_id     id of the token, also of one that a cookie, key or ticket was made with
    sign_in_id   id of the browser's or page's sign-in
    session_id   the only session that the caller has access to; None: all of the user's
    view_only    whether the caller may only watch the screen
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
        """Return what limits count as one caller: spectators do not use up those of their host."""
        return f"{self.user_id} {self.sign_in_id}" if self.view_only else self.user_id


@dataclass(frozen=True)
class Token:
    """A token's description; the token itself is stored as a hash only."""

    id: str
    user_id: str
    name: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    used_at: datetime | None


# A reason to boot that is not reported: later VMs will be resumed.
BEING_MADE = "its template is being made"


@dataclass(frozen=True)
class Vm:
    """A VM of a slot. It holds the slot and its address `vm_ip` until `released_at`.

    stage       the stage that its boot has reached, at `stage_at`
    timings     seconds from the start of the unit to each stage
    reason      why it failed, with `failed_units` and `serial_tail` of that moment
    failed_checks   health checks failed in a row
    image_digest    the image that it boots, or that its template was made of
    template    the template that it is resumed from; None: it boots
    boots_because   why it boots although templates are in use
    receipt     what a clone's guest reported after it got its identity
    pooled      whether it waits in the pool for a session: without identity, and paused when ready
    used_at     when a viewer or a request to its agent needed it last
    paused_at   when it was paused
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
        """Whether it waits in the pool, or is starting for it, so that a session can take it."""
        return self.pooled and self.state in LIVE_VM_STATES

    @property
    def is_primed(self) -> bool:
        """Whether it waits in the pool, paused: a session that takes it starts at once."""
        return self.pooled and self.state == "ready"


@dataclass(frozen=True)
class CredentialsReceipt:
    """A receipt for credentials that were stored. `sha256` is that of their compact JSON;
    `recipient` is the age key that they are encrypted to, None if the host encrypts them.
    """

    provider: str
    at: datetime
    sha256: str
    recipient: str | None


@dataclass(frozen=True)
class Session:
    """A user's use of a VM. `reason` says why it ended, unless the user ended it.

    login           the last known status of the tool's login
    login_detail    why the login failed, or why no credentials are stored or injected
    recipient       the age recipient to encrypt the credentials to
    stored_credentials  state of the user's stored credentials; None if they are not used
    credentials_sha256, credentials_at   of the credentials that were stored, and when
    wiped_at        when they were wiped from the VM, or left there since their user stored them
    completes_at    when the session is completed automatically
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
        """The receipt of the credentials that were stored from this session."""
        if self.credentials_sha256 is None or self.credentials_at is None:
            return None
        return CredentialsReceipt(
            self.provider, self.credentials_at, self.credentials_sha256, self.recipient
        )

    @property
    def waits_for_injection(self) -> bool:
        """Whether the user's stored credentials must still be injected into its VM."""
        return self.stored_credentials == "wanted" and self.state == "vm_created"

    @property
    def waits_for_wiping(self) -> bool:
        """Whether its VM still has a copy of credentials that were handed over."""
        return self.is_live and self.credentials_at is not None and self.wiped_at is None

    @property
    def has_login_under_way(self) -> bool:
        """Whether the driver has to ask its VM's agent about a login."""
        is_pending = self.state == "oauth_pending"
        return is_pending or self.waits_for_injection or self.waits_for_wiping


@dataclass(frozen=True)
class SessionNews:
    """An event of a session; `number` grows, so that a reader can continue after the last one."""

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
    """One use of a user's credentials, without their content.

    by          how the actor was authenticated; `controller`: by itself; `operator`: by a
                command on the host
    actor_id    the user who did it; None if no user did
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

"""The API's answers about sessions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import ConfigDict, Field

from polydev.controller.api.vm_answers import is_live
from polydev.controller.api_model import ApiModel
from polydev.controller.entities import Session, Vm
from polydev.controller.session_and_vm_states import Injection, SessionState
from polydev.controller.url_paths import screen_path, session_path, viewer_page
from polydev.controller.usage_quotas import QuotaName, QuotaState
from polydev.vm.boot_stages import Stage

SESSION_EXAMPLE: dict[str, Any] = {
    "id": "5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01",
    "sessionId": "5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01",
    "userId": "0f9f6a0e-52a5-4f0f-8a9e-6d1d2b6f3c10",
    "provider": "claude",
    "status": "vm_starting",
    "createdAt": "2026-11-21T10:15:00Z",
    "expiresAt": "2026-11-21T14:15:00Z",
    "heartbeatAt": None,
    "endedAt": None,
    "reason": None,
    "loginDetail": None,
    "storedCredentials": None,
    "credentialsReceipt": None,
    "completesAt": None,
    "vmId": "9e1c0b1a-8a0c-4f38-bb0c-3f7a6d7a2b11",
    "novncURL": "/session/5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01",
    "browserIP": "192.168.100.2",
    "boot": {
        "stage": "network",
        "stageAt": "2026-11-21T10:15:09Z",
        "timings": {"kernel": 1.2, "init": 4.8, "network": 8.9},
        "template": None,
        "bootsBecause": "its image has no template",
        "receipt": None,
    },
    "warnings": [],
    "links": {
        "self": "/api/auth/session/5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01",
        "vm": "/api/auth/session/5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01/vm",
        "events": "/api/auth/session/5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01/events",
        "novnc": "/api/auth/session/5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01/novnc/websock",
        "oauthUrl": "/api/auth/session/5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01/oauth-url",
        "oauthCode": "/api/auth/session/5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01/oauth-code",
    },
}


class ReceiptAnswer(ApiModel):
    """The report of a resumed VM's guest after it got its identity.

    Only the guest and its host know the secret. `random` is the first random number of its kernel
    after that.
    """

    vm_id: str
    session_id: str | None
    hostname: str
    machine_id: str
    boot_id: str
    secret_sha256: str
    random: str
    guest_time: float


class BootProgress(ApiModel):
    """The start of the VM. `timings` are seconds from its start to each stage.

    template        the template that it was resumed from; null if it boots
    bootsBecause    why it boots although this host resumes VMs
    receipt         of a resumed VM: proves its identity
    """

    stage: Stage
    stage_at: datetime
    timings: Mapping[str, float]
    template: str | None
    boots_because: str | None
    receipt: ReceiptAnswer | None


class Failure(ApiModel):
    """Why a VM failed, and the `stage` that it had reached."""

    reason: str
    stage: Stage
    failed_units: list[str]
    serial_tail: str | None


class QuotaAnswer(ApiModel):
    """A quota of a user, in the unit of its name. `freeAt` is when it resets."""

    quota: QuotaName
    used: float
    limit: float
    left: float
    free_at: datetime


class SessionWarning(ApiModel):
    """A warning for the user of a running session, which continues."""

    kind: Literal["quota"] = "quota"
    message: str
    quota: QuotaAnswer


class CredentialsReceiptAnswer(ApiModel):
    """The receipt for credentials that were stored for their owner: of a session's login, or by
    hand.

    sha256      of the credentials as compact JSON
    recipient   the age recipient that they are encrypted to; null if the host can decrypt them
    """

    provider: str
    at: datetime
    sha256: str
    recipient: str | None


class Links(ApiModel):
    self_: str = Field(alias="self")
    vm: str
    events: str
    novnc: str
    oauth_url: str
    oauth_code: str


class SessionAnswer(ApiModel):
    """A session.

    boot                progress of its VM's start; `failure`: why the VM failed, if it did
    warnings            quotas that its user has used up, or nearly
    loginDetail         why the login failed, or why no credentials are stored or injected
    storedCredentials   state of the owner's stored credentials, if the session uses them
    completesAt         when it is completed automatically, which destroys its VM

    Fields for older clients: `sessionId` is `id`, `novncURL` the path of the viewer's page, and
    `browserIP` the address of its VM, null once the VM has ended.
    """

    model_config = ConfigDict(title="Session", json_schema_extra={"examples": [SESSION_EXAMPLE]})

    id: str
    session_id: str
    user_id: str
    provider: str
    status: SessionState
    created_at: datetime
    expires_at: datetime
    heartbeat_at: datetime | None
    ended_at: datetime | None
    reason: str | None
    login_detail: str | None
    stored_credentials: Injection | None
    credentials_receipt: CredentialsReceiptAnswer | None
    completes_at: datetime | None
    vm_id: str
    novnc_url: str = Field(alias="novncURL")
    browser_ip: str | None = Field(alias="browserIP")
    boot: BootProgress
    failure: Failure | None = None
    warnings: list[SessionWarning] = Field(default=[])
    links: Links


class SessionList(ApiModel):
    """Newest first. Send `next` as `before` to get the next page; null: this is the last one."""

    sessions: list[SessionAnswer]
    next: str | None


def seen_by_spectator(answer: SessionAnswer) -> SessionAnswer:
    """Return the answer without what only the owner may see: quotas, console, receipts."""
    boot = answer.boot.model_copy(update={"receipt": None})
    failure = answer.failure and answer.failure.model_copy(update={"serial_tail": None})
    hidden: dict[str, Any] = {"browser_ip": None, "boot": boot, "failure": failure, "warnings": []}
    hidden |= {"credentials_receipt": None, "login_detail": None}
    return answer.model_copy(update=hidden)


def session_answer(session: Session, vm: Vm, quotas: Iterable[QuotaState] = ()) -> SessionAnswer:
    """Return the answer; `quotas` are those of the session's user."""
    return SessionAnswer(
        id=session.id,
        session_id=session.id,
        user_id=session.user_id,
        provider=session.provider,
        status=session.state,
        created_at=session.created_at,
        expires_at=session.expires_at,
        heartbeat_at=session.heartbeat_at,
        ended_at=session.ended_at,
        reason=session.reason,
        login_detail=session.login_detail,
        stored_credentials=session.stored_credentials,
        credentials_receipt=_credentials_receipt(session),
        completes_at=session.completes_at if session.is_live else None,
        vm_id=session.vm_id,
        novnc_url=viewer_page(session.id),
        browser_ip=vm.vm_ip if is_live(vm) else None,
        boot=_boot(vm),
        failure=_failure(vm),
        warnings=[_warning(each) for each in quotas if session.is_live and each.is_near],
        links=_links(session.id),
    )


def _credentials_receipt(session: Session) -> CredentialsReceiptAnswer | None:
    receipt = session.receipt
    return None if receipt is None else CredentialsReceiptAnswer(**vars(receipt))


def _boot(vm: Vm) -> BootProgress:
    return BootProgress(
        stage=vm.stage,
        stage_at=vm.stage_at,
        timings=vm.timings,
        template=vm.template,
        boots_because=vm.boots_because,
        receipt=ReceiptAnswer.model_validate(vm.receipt) if vm.receipt else None,
    )


def _warning(state: QuotaState) -> SessionWarning:
    then = (
        f"no further session can start before {state.free_again}; this one continues"
        if state.is_used_up
        else f"the quota resets at {state.free_again}"
    )
    return SessionWarning(message=f"{state.words} used: {then}", quota=quota_answer(state))


def quota_answer(state: QuotaState) -> QuotaAnswer:
    return QuotaAnswer(
        quota=state.quota,
        used=round(state.used, 3),
        limit=state.limit,
        left=round(state.left, 3),
        free_at=state.free_at,
    )


def _links(session_id: str) -> Links:
    path = session_path(session_id)
    return Links(
        self_=path,
        vm=f"{path}/vm",
        events=f"{path}/events",
        novnc=screen_path(session_id),
        oauth_url=f"{path}/oauth-url",
        oauth_code=f"{path}/oauth-code",
    )


def _failure(vm: Vm) -> Failure | None:
    if vm.reason is None:
        return None
    return Failure(
        reason=vm.reason,
        stage=vm.stage,
        failed_units=list(vm.failed_units),
        serial_tail=vm.serial_tail,
    )

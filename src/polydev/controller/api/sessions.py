"""Start, list, show, keep alive and end sessions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, Path, Query, Response
from pydantic import AfterValidator, ConfigDict, Field

from polydev.controller.api.documented_errors import error_responses
from polydev.controller.api.json_route import JsonRoute
from polydev.controller.api.pagination import BeforeUuid, page_of
from polydev.controller.api.providers import ProviderName, known_name
from polydev.controller.api.request_bodies import RequestBody
from polydev.controller.api.session_answers import (
    SessionAnswer,
    SessionList,
    seen_by_spectator,
    session_answer,
)
from polydev.controller.api.url_numbers import WholeNumber
from polydev.controller.api.vm_answers import SessionVmAnswer, is_live, session_vm_answer
from polydev.controller.app_services import Services
from polydev.controller.auth.authentication import BEARER, Asking
from polydev.controller.credential_encryption import checked_recipient
from polydev.controller.entities import Caller, Session, Vm, now
from polydev.controller.health import image_store_state
from polydev.controller.problem_details import NoCapacity
from polydev.controller.store.sessions import NewSession
from polydev.controller.url_paths import session_path
from polydev.controller.usage_quotas import QuotaState
from polydev.errors import CapacityError, ImageError, NotAllowed, SessionExpired, SessionNotFound

MOST_LISTED = 200
MOST_RECIPIENT_CHARACTERS = 128

QUOTA_USED_UP = (
    "A quota of the user is used up, or the caller sent too many requests; Retry-After says when "
    "to try again",
    {
        "type": "urn:polydev:error:quota-exceeded",
        "title": "Too Many Requests",
        "detail": "quota exceeded: 8.0 of 8 VM hours of today used",
        "hint": "the quota resets at 2026-11-22 00:00 UTC; an administrator may raise "
        "quotas.vm_hours_per_day",
        "quota": "vm_hours_per_day",
        "used": 8.012,
        "limit": 8,
        "freeAt": "2026-11-22T00:00:00Z",
    },
)
START_CONFLICT = (
    "The user has as many sessions as are allowed; or the idempotency key was used for another "
    "request; or another session uses the stored credentials (`credentials-in-use`), or only their "
    "owner's key opens them (`credentials-sealed`)",
    {
        "type": "urn:polydev:error:credentials-in-use",
        "title": "Conflict",
        "detail": "session 5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01 uses the credentials of claude; "
        "only one session may at a time",
        "hint": "end that session first: its credentials are stored again then",
    },
)
SessionId = Annotated[UUID, Path(description="The session's id")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=200,
        pattern=r"^[ -~]+$",
        description="A repeated request with the same key returns the same session",
    ),
]


class StartRequest(RequestBody):
    """Start a session. Only operators may name another user."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"userId": "0f9f6a0e-52a5-4f0f-8a9e-6d1d2b6f3c10", "provider": "claude"}]
        },
    )

    user_id: UUID = Field(alias="userId")
    provider: ProviderName
    credentials_recipient: (
        Annotated[
            str, Field(max_length=MOST_RECIPIENT_CHARACTERS), AfterValidator(checked_recipient)
        ]
        | None
    ) = Field(
        default=None,
        alias="credentialsRecipient",
        description="An age recipient (`age1…`) that the credentials are encrypted to: this host "
        "cannot decrypt them",
    )
    use_stored_credentials: bool = Field(
        default=False,
        alias="useStoredCredentials",
        description="Log the tool in with the user's stored credentials",
    )


def routes(services: Services) -> APIRouter:
    router = APIRouter(
        prefix="/api/auth", tags=["sessions"], dependencies=[BEARER], route_class=JsonRoute
    )
    _add_start(router, services)
    _add_list(router, services)
    _add_one(router, services)
    _add_vm(router, services)
    return router


def uuid_of(text: str) -> UUID:
    """Return the id in a path. Raises SessionNotFound for anything else."""
    try:
        return UUID(text)
    except ValueError:
        raise SessionNotFound("this is not the id of a session") from None


async def session_for(services: Services, caller: Caller, session_id: UUID) -> Session:
    """Return the session, if the caller has access to it. Raises SessionNotFound, NotAllowed."""
    session = await services.sessions.get(str(session_id))
    if caller.session_id not in (None, session.id):
        raise NotAllowed("access denied: this page's key is for another session")
    if session.user_id != caller.user_id and not caller.sees_all:
        raise NotAllowed("access denied: the session belongs to another user")
    return session


async def answer_of(services: Services, session: Session) -> SessionAnswer:
    vm = await services.vms.get(session.vm_id)
    quotas = await quotas_of(services, [session])
    return session_answer(session, vm, quotas.get(session.user_id, ()))


async def quotas_of(
    services: Services, sessions: Iterable[Session]
) -> Mapping[str, tuple[QuotaState, ...]]:
    """Return the quotas of users who have a live session, by the user's id."""
    if not services.settings.quotas.are_set:
        return {}
    ids = {each.user_id for each in sessions if each.is_live}
    users = await services.users.some(ids)
    return await services.usage.quotas({each.id: each.role for each in users.values()}, now())


def _add_start(router: APIRouter, services: Services) -> None:
    @router.post(
        "/start",
        status_code=201,
        summary="Start a session on a VM of its own",
        description="Answers at once. The VM starts meanwhile; `events` reports its progress.",
        responses={
            200: {
                "model": SessionAnswer,
                "description": "The session that an earlier request with this key has started",
            },
            201: {"description": "Started; `Location` is the session's path"},
            **error_responses(400, 404, 409, 422, own={409: START_CONFLICT, 429: QUOTA_USED_UP}),
        },
    )
    async def start(
        body: StartRequest,
        caller: Asking,
        response: Response,
        idempotency_key: IdempotencyKey = None,
    ) -> SessionAnswer:
        user_id = str(body.user_id)
        if user_id != caller.user_id and not caller.sees_all:
            raise NotAllowed("access denied: only operators may start a session for another user")
        if body.use_stored_credentials and user_id != caller.user_id:
            raise NotAllowed(
                "access denied: only the owner of stored credentials may start a session with them"
            )
        provider = known_name(services, body.provider, "body", "provider")
        services.start_limiter.take(caller.user_id)
        new = NewSession(
            user_id,
            provider,
            _golden(services),
            idempotency_key,
            body.credentials_recipient,
            body.use_stored_credentials,
            services.rotates(provider),
        )
        session, made = await _start(services, new)
        response.status_code = 201 if made else 200
        response.headers["Location"] = session_path(session.id)
        return await answer_of(services, session)


def _golden(services: Services) -> str:
    """Return the digest of the image for new sessions. Raises NoCapacity, ImageError."""
    if not services.settings.slots:
        raise NoCapacity(CapacityError("this host has no slots for VMs"), 0, None)
    golden = image_store_state(services.settings.image_store)
    if golden.golden is None:
        raise ImageError(golden.detail, "an operator must promote an image and deploy it")
    return golden.golden


async def _start(services: Services, new: NewSession) -> tuple[Session, bool]:
    if new.use_stored:
        services.credentials.require_keys()
    try:
        session, made = await services.sessions.start(new)
    except CapacityError as error:
        slots = len(services.settings.slots)
        raise NoCapacity(error, slots, await _oldest_idle(services)) from error
    if made:
        _changed(services)
    return session, made


def _changed(services: Services) -> None:
    """Notify the driver and those who follow sessions now, instead of at their next check."""
    if services.driver is not None:
        services.driver.wake()
    services.event_notifier.notify()


async def _oldest_idle(services: Services) -> str | None:
    """Return the id of the session that has been unused for the longest time."""
    live = await services.sessions.list(live_only=True, limit=len(services.settings.slots))
    oldest = min(live, key=lambda each: each.heartbeat_at or each.created_at, default=None)
    return None if oldest is None else oldest.id


def _add_list(router: APIRouter, services: Services) -> None:
    @router.get(
        "/sessions",
        summary="The caller's sessions, newest first; for operators those of all users",
        responses=error_responses(404, 422),
    )
    async def list_sessions(
        caller: Asking,
        live: Annotated[bool, Query(description="Only live sessions")] = False,
        limit: Annotated[WholeNumber, Query(ge=1, le=MOST_LISTED)] = 50,
        before: BeforeUuid = None,
    ) -> SessionList:
        last = await session_for(services, caller, before) if before else None
        user_id = None if caller.sees_all else caller.user_id
        found = await services.sessions.list(user_id, live, limit + 1, last)
        page, following = page_of(found, limit, lambda session: session.id)
        vms = await services.vms.some([each.vm_id for each in page])
        # A session and its VM may have been deleted between the two queries.
        known = [each for each in page if each.vm_id in vms]
        quotas = await quotas_of(services, known)
        return SessionList(
            sessions=[
                session_answer(each, vms[each.vm_id], quotas.get(each.user_id, ()))
                for each in known
            ],
            next=following,
        )


def _add_one(router: APIRouter, services: Services) -> None:
    @router.get(
        "/session/{session_id}",
        summary="A session, the progress of its VM, and why it failed if it did",
        responses=error_responses(404, 422),
    )
    async def get_session(session_id: SessionId, caller: Asking) -> SessionAnswer:
        answer = await answer_of(services, await session_for(services, caller, session_id))
        return seen_by_spectator(answer) if caller.view_only else answer

    @router.delete(
        "/session/{session_id}",
        summary="End a session and its VM; a session that is over stays as it is",
        responses=error_responses(404, 422),
    )
    async def end_session(session_id: SessionId, caller: Asking) -> SessionAnswer:
        session = await session_for(services, caller, session_id)
        try:
            session = await services.sessions.apply(session.id, "terminate")
            _changed(services)
        except SessionExpired:
            session = await services.sessions.get(session.id)
        return await answer_of(services, session)

    @router.post(
        "/session/{session_id}/heartbeat",
        summary="Keep the session alive. A session with an open viewer needs no heartbeat",
        responses=error_responses(404, 410, 422),
    )
    async def heartbeat(session_id: SessionId, caller: Asking) -> SessionAnswer:
        session = await session_for(services, caller, session_id)
        return await answer_of(services, await services.sessions.heartbeat(session.id))


def _add_vm(router: APIRouter, services: Services) -> None:
    @router.get(
        "/session/{session_id}/vm",
        summary="The VM of a session, and its address",
        responses=error_responses(404, 410, 422),
    )
    async def get_vm_of_session(session_id: SessionId, caller: Asking) -> SessionVmAnswer:
        session = await session_for(services, caller, session_id)
        return session_vm_answer(session, await live_vm_of(services, session))


async def live_vm_of(services: Services, session: Session) -> Vm:
    """Return the session's VM. Raises SessionExpired if it has ended."""
    vm = await services.vms.get(session.vm_id)
    if not is_live(vm):
        raise SessionExpired(_why_gone(session, vm), "start another session")
    return vm


def _why_gone(session: Session, vm: Vm) -> str:
    reason = vm.reason or session.reason or session.state
    return f"the session's VM has ended: {reason}"

"""The login of a session's tool: the tool names a URL at which the user logs in."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from polydev.controller.api.documented_errors import error_responses
from polydev.controller.api.json_route import JsonRoute
from polydev.controller.api.request_bodies import SecretBody
from polydev.controller.api.session_answers import SessionAnswer
from polydev.controller.api.sessions import SessionId, answer_of, live_vm_of, session_for
from polydev.controller.api_model import ApiModel
from polydev.controller.app_services import Services
from polydev.controller.auth.authentication import BEARER, Asking
from polydev.controller.entities import Session, Vm
from polydev.controller.machines.agent_answers import AgentLogin
from polydev.errors import LoginFailed, LoginRefused, SessionError

PREFIX = "/api/auth"
OLDER_PREFIX = "/api/vm/auth"
RETRY_SECONDS = 2
LOGIN_EXAMPLE: dict[str, Any] = {
    "sessionId": "5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01",
    "provider": "claude",
    "status": "waiting",
    "url": "https://claude.ai/oauth/authorize?code=true&state=Zm9v",
    "deviceCode": None,
    "acceptsCode": True,
    "detail": "",
}
NOT_WAITING = {
    "type": "urn:polydev:error:login-refused",
    "title": "Conflict",
    "detail": "no login is waiting for a code",
    "hint": "GET oauth-url reports the progress of the login",
}
MOST_CODE_CHARACTERS = 4096
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The URL is known, or the tool is logged in already (`done`)"},
    202: {"description": "The VM or the tool is starting; Retry-After says when to ask again"},
    **error_responses(404, 410, 422, 502),
}
CODE_RESPONSES: dict[int | str, dict[str, Any]] = {
    202: {
        "description": "The code was typed into the tool's terminal; `oauth-url` reports the result"
    },
    **error_responses(
        400,
        404,
        410,
        422,
        502,
        own={409: ("No login is waiting, or it accepts no code", NOT_WAITING)},
    ),
}


def _typeable(code: str) -> str:
    code = code.strip()
    if not code or not code.isprintable():
        raise PydanticCustomError("code", "must be one line of printable characters")
    return code


class CodeRequest(SecretBody):
    """A code that the provider's page shows, for the tool's terminal."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"code": "4/0AbCD#Zm9v"}]}
    )

    code: Annotated[
        str, Field(max_length=MOST_CODE_CHARACTERS, repr=False), AfterValidator(_typeable)
    ]


class LoginAnswer(ApiModel):
    """The progress of the login. `url` is null until it is known.

    deviceCode      the code to enter at `url`, if the tool has one
    acceptsCode     whether a code that the provider's page shows may be sent to `oauth-code`
    detail          more about the status, such as why no credentials are stored
    """

    model_config = ConfigDict(title="Login", json_schema_extra={"examples": [LOGIN_EXAMPLE]})

    session_id: str
    provider: str
    status: Literal["vm_starting", "starting", "waiting", "done"]
    url: str | None
    device_code: str | None
    accepts_code: bool
    detail: str


def routes(services: Services) -> APIRouter:
    router = APIRouter(tags=["login"], dependencies=[BEARER], route_class=JsonRoute)

    @router.get(
        f"{OLDER_PREFIX}/session/{{session_id}}/oauth-url",
        summary="The same as /api/auth/session/{session_id}/oauth-url, for older clients",
        response_model=LoginAnswer,
        responses=RESPONSES,
    )
    @router.get(
        f"{PREFIX}/session/{{session_id}}/oauth-url",
        summary="The login URL. The first request starts the tool",
        response_model=LoginAnswer,
        responses=RESPONSES,
    )
    async def get_url(session_id: SessionId, caller: Asking, response: Response) -> LoginAnswer:
        session = await session_for(services, caller, session_id)
        return await _login(services, session, response, again=False)

    @router.post(
        f"{PREFIX}/session/{{session_id}}/oauth-url",
        summary="Start the tool, or start it again after a failed login",
        response_model=LoginAnswer,
        responses=RESPONSES,
    )
    async def start(session_id: SessionId, caller: Asking, response: Response) -> LoginAnswer:
        session = await session_for(services, caller, session_id)
        return await _login(services, session, response, again=True)

    @router.post(
        f"{OLDER_PREFIX}/session/{{session_id}}/oauth-code",
        summary="The same as /api/auth/session/{session_id}/oauth-code, for older clients",
        status_code=202,
        responses=CODE_RESPONSES,
    )
    @router.post(
        f"{PREFIX}/session/{{session_id}}/oauth-code",
        summary="Send the tool a code that the provider's page shows",
        status_code=202,
        responses=CODE_RESPONSES,
    )
    async def give_code(session_id: SessionId, body: CodeRequest, caller: Asking) -> SessionAnswer:
        session = await session_for(services, caller, session_id)
        vm = await _asked_vm(services, session)
        if vm is None or session.state != "oauth_pending":
            raise LoginRefused("no login is waiting for a code", NOT_WAITING["hint"])
        await services.agent.type_code(vm.vm_ip, session.provider, body.code)
        return await answer_of(services, session)

    return router


async def _asked_vm(services: Services, session: Session) -> Vm | None:
    """Return the session's VM, resumed if it was paused; None while it boots.

    Raises SessionExpired if it has ended, VmError if it does not resume.
    """
    vm = await live_vm_of(services, session)
    if vm.state != "ready":
        return None
    if (await services.waker.awake(vm)).state != "ready":
        vm = await live_vm_of(services, await services.sessions.get(session.id))
    return vm


async def _login(
    services: Services, session: Session, response: Response, *, again: bool
) -> LoginAnswer:
    if session.receipt is not None or session.stored_credentials == "injected":
        return await _done(services, session, again=again)
    vm = await _asked_vm(services, session)
    if vm is None:
        return _coming(services, response, session, "vm_starting")
    if session.waits_for_injection:
        return _coming(services, response, session, "starting")
    login = await services.agent.login(vm.vm_ip, session.provider, start=again)
    if login.status == "none":
        login = await services.agent.login(vm.vm_ip, session.provider, start=True)
    moved = await _note(services, session, login)
    if services.driver is not None and (moved != session or login.status == "done"):
        services.driver.check_login(vm.id)
    if login.status == "failed" or (login.status == "done" and moved.login == "failed"):
        why = login.detail or moved.login_detail or "no reason is known"
        raise LoginFailed(
            f"the login of {session.provider} failed: {why}",
            "look at the VM's screen, then POST to this address to start the tool again",
        )
    return _answer(services, response, moved, login)


async def _note(services: Services, session: Session, login: AgentLogin) -> Session:
    """Note how far the login is. The driver notes its end, with the credentials."""
    if login.status == "done" and session.state != "vm_created":
        return session
    moved = await services.sessions.set_login(session.id, login.status, login.detail)
    if moved != session:
        services.event_notifier.notify()
    return moved


async def _done(services: Services, session: Session, *, again: bool) -> LoginAnswer:
    """Answer for a session whose login is done for good. Raises SessionExpired and SessionError.

    The VM is not asked: it may be paused, and has no credentials of its own any more.
    """
    await live_vm_of(services, session)
    if again:
        raise SessionError(
            "the session's login is done", "start another session to log in once more"
        )
    return _told(services, session, "done")


def _answer(
    services: Services, response: Response, session: Session, login: AgentLogin
) -> LoginAnswer:
    if login.status == "done" or (login.status == "waiting" and (login.url or login.device_code)):
        return _told(services, session, login.status, login)
    return _coming(services, response, session, "starting")


def _coming(
    services: Services,
    response: Response,
    session: Session,
    status: Literal["vm_starting", "starting"],
) -> LoginAnswer:
    response.status_code = 202
    response.headers["Retry-After"] = str(RETRY_SECONDS)
    return _told(services, session, status)


def _told(
    services: Services,
    session: Session,
    status: Literal["vm_starting", "starting", "waiting", "done"],
    login: AgentLogin | None = None,
) -> LoginAnswer:
    return LoginAnswer(
        session_id=session.id,
        provider=session.provider,
        status=status,
        url=login.url if login else None,
        device_code=login.device_code if login else None,
        accepts_code=services.accepts_code(session.provider),
        detail=(login and login.detail) or session.login_detail or "",
    )

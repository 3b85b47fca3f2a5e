"""The login of a session's tool: the tool says a URL, at which its user logs in."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Response
from pydantic import ConfigDict

from polydev.controller.api.answers import Answer
from polydev.controller.api.identity import BEARER, Asking
from polydev.controller.api.refusals import refusals
from polydev.controller.api.sessions import SessionId, live_vm_of, session_for
from polydev.controller.machines.agent_client import AgentLogin
from polydev.controller.model import Session
from polydev.controller.services import Services
from polydev.errors import LoginFailed

PREFIX = "/api/auth"
OLDER_PREFIX = "/api/vm/auth"
RETRY_SECONDS = 2
LOGIN_EXAMPLE: dict[str, Any] = {
    "sessionId": "5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01",
    "provider": "claude",
    "status": "waiting",
    "url": "https://claude.ai/oauth/authorize?code=true&state=Zm9v",
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The URL is known; or the tool is logged in already, `done`"},
    202: {"description": "The VM or the tool starts; Retry-After says when to ask again"},
    **refusals(404, 410, 422, 502),
}


class LoginAnswer(Answer):
    """How far the login is. `url` is told as soon as it is known."""

    model_config = ConfigDict(title="Login", json_schema_extra={"examples": [LOGIN_EXAMPLE]})

    session_id: str
    provider: str
    status: Literal["vm_starting", "starting", "waiting", "done"]
    url: str | None


def routes(services: Services) -> APIRouter:
    router = APIRouter(tags=["login"], dependencies=[BEARER])

    @router.get(
        f"{OLDER_PREFIX}/session/{{session_id}}/oauth-url",
        summary="The same as /api/auth/session/{session_id}/oauth-url, for older clients",
        response_model=LoginAnswer,
        responses=RESPONSES,
    )
    @router.get(
        f"{PREFIX}/session/{{session_id}}/oauth-url",
        summary="Where the user logs in; the first question starts the tool",
        response_model=LoginAnswer,
        responses=RESPONSES,
    )
    async def get_url(session_id: SessionId, caller: Asking, response: Response) -> LoginAnswer:
        session = await session_for(services, caller, session_id)
        return await _login(services, session, response, again=False)

    @router.post(
        f"{PREFIX}/session/{{session_id}}/oauth-url",
        summary="Start the tool, also one whose login has failed",
        response_model=LoginAnswer,
        responses=RESPONSES,
    )
    async def start(session_id: SessionId, caller: Asking, response: Response) -> LoginAnswer:
        session = await session_for(services, caller, session_id)
        return await _login(services, session, response, again=True)

    return router


async def _login(
    services: Services, session: Session, response: Response, *, again: bool
) -> LoginAnswer:
    vm = await live_vm_of(services, session)
    if vm.state != "ready":
        return _coming(response, session, "vm_starting")
    if (await services.awake(vm)).state != "ready":
        vm = await live_vm_of(services, await services.sessions.get(session.id))
    login = await services.agent.login(vm.vm_ip, session.provider, start=again)
    if login.status == "none":
        login = await services.agent.login(vm.vm_ip, session.provider, start=True)
    if login.status == "failed":
        raise LoginFailed(
            f"{session.provider} did not come to its login: {login.detail or 'no reason is known'}",
            "see what the VM's console says, then POST to this address to start the tool again",
        )
    moved = await services.sessions.login_is(session.id, login.status)
    if moved.state != session.state:
        services.news.ring()
    return _answer(response, session, login)


def _answer(response: Response, session: Session, login: AgentLogin) -> LoginAnswer:
    if login.status == "done" or (login.status == "waiting" and login.url):
        return LoginAnswer(
            session_id=session.id,
            provider=session.provider,
            status=login.status,
            url=login.url,
        )
    return _coming(response, session, "starting")


def _coming(
    response: Response, session: Session, status: Literal["vm_starting", "starting"]
) -> LoginAnswer:
    response.status_code = 202
    response.headers["Retry-After"] = str(RETRY_SECONDS)
    return LoginAnswer(session_id=session.id, provider=session.provider, status=status, url=None)

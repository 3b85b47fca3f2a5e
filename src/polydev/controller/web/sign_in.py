"""Sign browsers in and out, by a token, a JWT or a one-time link."""

from __future__ import annotations

import re
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from polydev.controller.app_services import Services
from polydev.controller.auth.client_address import asked_from
from polydev.controller.auth.cookies import remove_cookie, set_cookie
from polydev.controller.auth.jwt_reader import HOW_TO_AUTHENTICATE
from polydev.controller.entities import Caller
from polydev.controller.problem_details import problem_of
from polydev.controller.web.page_rendering import Pages
from polydev.controller.web.texts import text
from polydev.errors import Error, NotAllowed, NotAuthenticated

LOCAL_PATH = re.compile(r"/(?![/\\])[!-~]*")
MOST_FORM_FIELDS = 10


def routes(services: Services, pages: Pages) -> APIRouter:
    router = APIRouter(include_in_schema=False)
    _add_login(router, services, pages)
    _add_state(router, services, pages)
    _add_code(router, services, pages)
    _add_logout(router, services, pages)
    return router


def _add_login(router: APIRouter, services: Services, pages: Pages) -> None:
    @router.get("/login")
    async def show_login(request: Request) -> Response:
        after = local_path(request.query_params.get("next"))
        return pages.render(request, "sign_in.html", next=after, problem=None)

    @router.post("/login")
    async def log_in(request: Request) -> Response:
        form = await _form(request, pages)
        after = local_path(form.get("next"))
        try:
            token = f"Bearer {form.get('token', '').strip()}"
            caller = await services.authenticator.caller(token, None, *asked_from(request.scope))
            check_is_person(caller)
        except (Error, HTTPException) as refusal:
            return _refused(request, pages, refusal, after)
        return await _signed_in(request, services, pages, caller, after)


def _add_state(router: APIRouter, services: Services, pages: Pages) -> None:
    @router.get("/login/state")
    async def get_state(request: Request) -> dict[str, bool]:
        """Return whether the browser is signed in. Browsers do not send the cookie after a link of
        another site, so the sign-in page asks this from its own script.
        """
        cookie = pages.rules.cookie_of(request.scope)
        if cookie is None:
            return {"signedIn": False}
        try:
            looked_up = services.authenticator.of_cookie(cookie)
            await services.authenticator.counted(looked_up, *asked_from(request.scope))
        except NotAuthenticated:
            return {"signedIn": False}
        return {"signedIn": True}


def _add_code(router: APIRouter, services: Services, pages: Pages) -> None:
    @router.post("/login/code")
    async def log_in_by_link(request: Request) -> Response:
        form = await _form(request, pages)
        after = local_path(form.get("next"))
        try:
            looked_up = _of_code(services, form.get("code", ""))
            caller = await services.authenticator.counted(looked_up, *asked_from(request.scope))
        except (Error, HTTPException) as refusal:
            return _refused(request, pages, refusal, after)
        return await _signed_in(request, services, pages, caller, after)


def _add_logout(router: APIRouter, services: Services, pages: Pages) -> None:
    @router.post("/logout")
    async def log_out(request: Request) -> Response:
        caller: Caller = request.state.caller
        if caller.sign_in_id is not None:
            await services.sign_ins.end(caller.sign_in_id)
        response = Response(status_code=204, headers={"HX-Redirect": "/login"})
        remove_cookie(response, is_secure=pages.rules.is_secure(request.scope))
        return response


def check_is_person(caller: Caller) -> None:
    """Raise NotAllowed for a page's key, which only opens one session."""
    if caller.session_id is not None:
        raise NotAllowed(
            "access denied: this key only opens the page of one session", "use a token or a JWT"
        )


def local_path(text: str | None) -> str:
    """Return the path to go to after the sign-in: one of our pages, by default the start page."""
    return text if text and LOCAL_PATH.fullmatch(text) else "/"


async def _of_code(services: Services, code: str) -> Caller:
    caller = await services.tickets.redeem(code, "sign-in")
    if caller is None:
        raise NotAuthenticated(text("login.bad_link"), text("login.bad_link_hint"))
    return caller


async def _form(request: Request, pages: Pages) -> dict[str, str]:
    """Return the fields of a form. Raises NotAllowed if a page of another site sent it."""
    if not pages.rules.is_from_own_page(request.headers):
        raise NotAllowed("access denied: the request comes from a page of another site")
    try:
        body = (await request.body()).decode()
        found = parse_qs(body, keep_blank_values=True, max_num_fields=MOST_FORM_FIELDS)
    except ValueError:
        raise HTTPException(400, "the form is not valid") from None
    return {name: values[-1] for name, values in found.items()}


def _refused(request: Request, pages: Pages, refusal: Exception, after: str) -> Response:
    problem = problem_of(refusal, request.url.path, request.state.request_id)
    if problem.hint == HOW_TO_AUTHENTICATE:  # a hint for programs
        problem = problem.model_copy(update={"hint": text("login.bad_token_hint")})
    return pages.render(request, "sign_in.html", problem.status, next=after, problem=problem)


async def _signed_in(
    request: Request, services: Services, pages: Pages, caller: Caller, after: str
) -> Response:
    services.request_limiter.take(caller.user_id)
    secret, until = await services.sign_ins.create(caller, services.settings.web.sign_in_seconds)
    response = RedirectResponse(after, 303)
    set_cookie(response, secret, until, is_secure=pages.rules.is_secure(request.scope))
    return response

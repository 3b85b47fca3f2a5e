"""Render pages from templates, with security headers."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from polydev.controller.auth.cookies import csrf_token
from polydev.controller.auth.csrf import BrowserRules, shows_session_by_ticket
from polydev.controller.entities import Caller
from polydev.controller.problem_details import Problem
from polydev.controller.settings import WebSettings
from polydev.controller.web.assets import Assets
from polydev.controller.web.navigation import links_for
from polydev.controller.web.security_headers import security_headers
from polydev.controller.web.texts import text, texts_under


class Pages:
    def __init__(self, rules: BrowserRules, web: WebSettings, assets: Assets) -> None:
        self.rules = rules
        self.assets = assets
        self._embed_origins = web.embed_origins
        self._templates = Environment(
            loader=PackageLoader("polydev.controller.web"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters["sentence"] = sentence
        self._templates.globals.update(t=text, texts_under=texts_under, asset=assets.url)

    def render(
        self, request: Request, template: str, status: int = 200, **values: Any
    ) -> HTMLResponse:
        """Render a page, or a part of one, for the request's caller, if any."""
        caller: Caller | None = getattr(request.state, "caller", None)
        cookie: str | None = getattr(request.state, "cookie", None)
        content = self._templates.get_template(template).render(
            {
                "caller": caller,
                "csrf": csrf_token(cookie) if cookie else "",
                "path": request.url.path,
                "links": links_for(caller),
                **values,
            }
        )
        return HTMLResponse(content, status, headers=self._security_headers(request))

    def part(self, template: str, **values: Any) -> Markup:
        """Render a part of a page that is the same for all callers."""
        rendered = self._templates.get_template(template).render(values)
        return Markup(rendered)  # noqa: S704  # the template has escaped all values

    def problem(self, request: Request, problem: Problem) -> Response:
        """Return the page of a problem; without a sign-in, redirect to the sign-in page."""
        if problem.status == HTTPStatus.UNAUTHORIZED and request.method == "GET":
            return RedirectResponse(f"/login?next={quote(_here(request))}", 303)
        return self.render(request, "problem.html", problem.status, problem=problem)

    def _security_headers(self, request: Request) -> dict[str, str]:
        framed_by = self._embed_origins if shows_session_by_ticket(request.scope) else ()
        is_secure = self.rules.is_secure(request.scope)
        return security_headers(request.headers.get("host", ""), is_secure, framed_by)


def sentence(words: str) -> str:
    """Return an error's message as a sentence."""
    begun = words[:1].upper() + words[1:]
    return begun if begun.endswith((".", "!", "?", "…")) else f"{begun}."


def _here(request: Request) -> str:
    query = request.url.query
    return f"{request.url.path}?{query}" if query else request.url.path

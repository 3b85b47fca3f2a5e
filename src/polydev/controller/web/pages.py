"""Render pages from templates, with security headers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from polydev.controller.problems import Problem
from polydev.controller.settings import WebSettings
from polydev.controller.web.assets import Assets
from polydev.controller.web.texts import text, texts_under

# Headers of pages that other sites may not use.
OPENED_ALONE = {"Cross-Origin-Opener-Policy": "same-origin"}
ALONE = {
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True)
class NavigationLink:
    """A link of the navigation. `title` is the name of a text."""

    path: str
    title: str


USER_LINKS = (NavigationLink("/", "navigation.start"),)
OPERATOR_LINKS: tuple[NavigationLink, ...] = (
    NavigationLink("/admin", "navigation.dashboard"),
    NavigationLink("/admin/sessions", "machines.navigation"),
    NavigationLink("/admin/users", "users.title"),
    NavigationLink("/admin/images", "images.title"),
    NavigationLink("/admin/deployments", "deployments.title"),
    NavigationLink("/admin/alerts", "alerts.title"),
)


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
                "links": _links(caller),
                **values,
            }
        )
        return HTMLResponse(content, status, headers=self._headers(request))

    def part(self, template: str, **values: Any) -> Markup:
        """Render a part of a page that is the same for all callers."""
        rendered = self._templates.get_template(template).render(values)
        return Markup(rendered)  # noqa: S704  # the template has escaped all values

    def problem(self, request: Request, problem: Problem) -> Response:
        """Return the page of a problem; without a sign-in, redirect to the sign-in page."""
        if problem.status == HTTPStatus.UNAUTHORIZED and request.method == "GET":
            return RedirectResponse(f"/login?next={quote(_here(request))}", 303)
        return self.render(request, "problem.html", problem.status, problem=problem)

    def _headers(self, request: Request) -> dict[str, str]:
        framed_by = self._embed_origins if shows_session_by_ticket(request.scope) else ()
        is_secure = self.rules.is_secure(request.scope)
        headers = {
            "Content-Security-Policy": content_security_policy(
                request.headers.get("host", ""), is_secure, framed_by
            ),
            "Referrer-Policy": "same-origin",
            "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
        }
        if framed_by:
            return headers
        # Browsers ignore this header without TLS, and log a warning.
        return headers | ALONE | (OPENED_ALONE if is_secure else {})


def sentence(words: str) -> str:
    """Return an error's message as a sentence."""
    begun = words[:1].upper() + words[1:]
    return begun if begun.endswith((".", "!", "?", "…")) else f"{begun}."


def content_security_policy(host: str, is_secure: bool, framed_by: Sequence[str] = ()) -> str:
    """Allow no inline scripts or styles, and nothing from other sites. `framed_by`: origins."""
    # In some browsers 'self' does not include WebSockets.
    own_socket = f" {'wss' if is_secure else 'ws'}://{host}" if _is_plain(host) else ""
    rules = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data: blob:",
        "font-src": "'self'",
        "connect-src": f"'self'{own_socket}",
        "manifest-src": "'self'",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": " ".join(framed_by) or "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _is_plain(host: str) -> bool:
    """Whether a host is safe in a header: a name or address, with or without a port."""
    return bool(host) and all(each.isalnum() or each in ".-:[]_" for each in host)


def _links(caller: Caller | None) -> tuple[NavigationLink, ...]:
    if caller is None or caller.session_id is not None:
        return ()
    return USER_LINKS + OPERATOR_LINKS if caller.sees_all else USER_LINKS


def _here(request: Request) -> str:
    query = request.url.query
    return f"{request.url.path}?{query}" if query else request.url.path

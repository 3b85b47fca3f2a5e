"""The start page: a user's sessions, stored logins and quotas."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from polydev.controller.app_services import Services
from polydev.controller.auth.authentication import Asking
from polydev.controller.entities import Caller, CredentialEvent, Session, now
from polydev.controller.web.page_rendering import Pages
from polydev.controller.web.texts import text
from polydev.controller.web.user_rows import QuotaBar, quota_bar

MOST_OVER = 5
MOST_READ = 50
MOST_EVENTS = 50
UNITS = ((86400, "days"), (3600, "hours"), (60, "minutes"))


def routes(services: Services, pages: Pages) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def show_start(request: Request, caller: Asking) -> Response:
        return pages.render(
            request,
            "start.html",
            providers=services.providers(),
            user_id=caller.user_id,
            sessions=await _sessions(services, caller),
            quotas=await _quotas(services, caller),
            label=labels(services),
            ago=ago,
            **await _logins(services, caller),
        )

    @router.get("/start/sessions")
    async def show_sessions(request: Request, caller: Asking) -> Response:
        sessions = await _sessions(services, caller)
        return pages.render(
            request, "start_sessions.html", sessions=sessions, label=labels(services), ago=ago
        )

    @router.get("/start/logins")
    async def show_logins(request: Request, caller: Asking) -> Response:
        logins = await _logins(services, caller)
        return pages.render(request, "start_logins.html", label=labels(services), ago=ago, **logins)

    @router.get("/start/log")
    async def show_log(request: Request, caller: Asking) -> Response:
        events = await services.credential_log.list(caller.user_id, MOST_EVENTS)
        return pages.render(
            request,
            "start_credentials_log.html",
            events=events,
            label=labels(services),
            ago=ago,
            by=actor_text,
        )

    return router


async def _logins(services: Services, caller: Caller) -> dict[str, Any]:
    """Return the caller's stored credentials, and those that a session can use now."""
    stored = await services.credentials.list(caller.user_id)
    known = services.providers()
    usable = {
        each.provider
        for each in stored
        if each.provider in known and each.recipient is None and each.holder_id is None
    }
    return {"stored": stored, "usable": usable}


async def _sessions(services: Services, caller: Caller) -> list[Session]:
    """Return the caller's live sessions, then some that are over, each newest first."""
    found = await services.sessions.list(caller.user_id, limit=MOST_READ)
    live = await services.sessions.list(caller.user_id, live_only=True, limit=MOST_READ)
    over = [session for session in found if not session.is_live]
    return [*live, *over[:MOST_OVER]]


async def _quotas(services: Services, caller: Caller) -> list[QuotaBar]:
    found = await services.usage.quotas({caller.user_id: caller.role}, now())
    return [quota_bar(each) for each in found[caller.user_id]]


def labels(services: Services) -> Callable[[str], str]:
    """Return a function from a provider's name to its label; an unknown one keeps its name."""
    known = services.providers()
    return lambda name: known[name].label if name in known else name


def actor_text(event: CredentialEvent) -> str:
    """Return who used a user's credentials, in words for that user."""
    if event.by in ("controller", "operator"):
        return text(f"start.log.by.{event.by}")
    return text("start.log.by.owner" if event.actor_id == event.user_id else "start.log.by.other")


def ago(at: datetime) -> str:
    """Return how long ago a time was, in words."""
    seconds = (now() - at).total_seconds()
    for unit_seconds, name in UNITS:
        if seconds >= unit_seconds:
            return text(f"start.ago.{name}", count=int(seconds // unit_seconds))
    return text("start.ago.now")

"""The page of one session, which its script fills, and the script's configuration."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from polydev.controller.api.sessions import session_for, uuid_of
from polydev.controller.app_services import Services
from polydev.controller.entities import Caller, now
from polydev.controller.web.page_rendering import Pages


def routes(services: Services, pages: Pages) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/session/{session_id}")
    async def show_session(request: Request, session_id: str) -> Response:
        """Show a session. With a ticket there is no caller yet: the script exchanges it."""
        known = uuid_of(session_id)
        caller: Caller | None = getattr(request.state, "caller", None)
        if caller is not None:
            await session_for(services, caller, known)
        config = _config(services, str(known), caller)
        return pages.render(request, "session.html", config=config)

    return router


def _config(services: Services, session_id: str, caller: Caller | None) -> dict[str, Any]:
    limits = services.settings.session
    return {
        "sessionId": session_id,
        "userId": caller.user_id if caller else None,
        "tools": {each.name: each.label for each in services.providers().values()},
        "limits": {
            "idleSeconds": limits.idle_seconds,
            "maxSeconds": limits.max_seconds,
            "now": round(now().timestamp() * 1000),
        },
    }

"""The operators' pages of users: a list with usage, and one user with tokens."""

from __future__ import annotations

from collections import Counter
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request
from starlette.responses import Response

from polydev.controller.app_services import Services
from polydev.controller.auth.authentication import AskingOperator
from polydev.controller.entities import now
from polydev.controller.store.sessions import MOST_LIVE_SESSIONS
from polydev.controller.usage_accounting import USUAL_DAYS, first_day
from polydev.controller.usage_quotas import month_of
from polydev.controller.web.formatting import hours_text, time_text
from polydev.controller.web.page_rendering import Pages
from polydev.controller.web.user_rows import day_bars, token_state, user_row
from polydev.controller.web.vm_pages import vm_entries
from polydev.controller.web.vm_rows import vm_row

LATEST_SESSIONS = 20


def routes(services: Services, pages: Pages) -> APIRouter:
    router = APIRouter(prefix="/admin/users", include_in_schema=False)

    @router.get("")
    async def show_users(request: Request, _operator: AskingOperator) -> Response:
        return pages.render(request, "users.html", **await _all(services))

    @router.get("/{user_id}")
    async def show_user(request: Request, user_id: UUID, _operator: AskingOperator) -> Response:
        return pages.render(request, "user.html", **await _one(services, str(user_id)))

    return router


async def _all(services: Services) -> dict[str, Any]:
    """Return the values of the list's template."""
    at = now()
    users = await services.users.list()
    days = await services.usage.days(first_day(at))
    quotas = await services.usage.quotas({user.id: user.role for user in users}, at)
    live = await services.sessions.list(live_only=True, limit=MOST_LIVE_SESSIONS)
    sessions, seen = Counter(each.user_id for each in live), await services.users.last_seen()
    rows = [
        user_row(
            user,
            days.get(user.id, {}),
            quotas[user.id],
            sessions[user.id],
            seen.get(user.id),
            at,
        )
        for user in users
    ]
    return {"rows": rows, "usual_days": USUAL_DAYS}


async def _one(services: Services, user_id: str) -> dict[str, Any]:
    """Return the values of one user's template. Raises UserNotFound."""
    at = now()
    user = await services.users.get(user_id)
    known = await services.usage.days(min(first_day(at), month_of(at)), user.id)
    days = known.get(user.id, {})
    lately = {day: use for day, use in days.items() if day >= first_day(at)}
    quotas = await services.usage.quotas({user.id: user.role}, at)
    seen = await services.users.last_seen(user.id)
    latest = await services.vms.list(user.id, limit=LATEST_SESSIONS)
    machines = await vm_entries(services, latest)
    rows = [vm_row(each, at) for each in machines.values()]
    tokens = await services.tokens.list(user.id)
    live = sum(row.is_live for row in rows)
    return {
        "user_row": user_row(user, lately, quotas[user.id], live, seen.get(user.id), at),
        "days": day_bars(lately, at),
        "usual_days": USUAL_DAYS,
        "most": hours_text(max((use.vm_seconds for use in lately.values()), default=0)),
        "rows": rows,
        "tokens": [(each, token_state(each, at)) for each in reversed(tokens)],
        "time": time_text,
    }

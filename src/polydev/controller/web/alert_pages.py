"""The operators' page of active and past alerts, and of webhook deliveries."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from polydev.controller.app_services import Services
from polydev.controller.auth.authentication import AskingOperator
from polydev.controller.entities import Alert, now
from polydev.controller.store.webhook_log import Delivery
from polydev.controller.web.css_classes import LEVELS, delivery_level
from polydev.controller.web.formatting import clock_text, duration_text, time_text
from polydev.controller.web.page_rendering import Pages

HISTORY = timedelta(days=7)
MOST_PAST = 200
MOST_DELIVERIES = 20


def routes(services: Services, pages: Pages) -> APIRouter:
    router = APIRouter(prefix="/admin/alerts", include_in_schema=False)

    @router.get("")
    async def show_alerts(request: Request, _operator: AskingOperator) -> Response:
        return pages.render(request, "alerts.html", **await _alerts(services))

    @router.get("/rows")
    async def show_rows(request: Request, _operator: AskingOperator) -> Response:
        return pages.render(request, "alert_rows.html", **await _alerts(services))

    return router


async def _alerts(services: Services) -> dict[str, Any]:
    at = now()
    standing = await services.alerts.standing()
    history = await services.alerts.history(at - HISTORY, MOST_PAST)
    # The worst first, then the newest.
    standing.sort(key=lambda alert: (alert.severity != "critical", -alert.id))
    return {
        "standing": [alert_row(each, at) for each in standing],
        "past": [alert_row(each, at) for each in history if each.cleared_at is not None],
        "has_webhooks": bool(services.settings.webhooks.endpoints),
        "deliveries": await _deliveries(services),
        "at": clock_text(at),
    }


async def _deliveries(services: Services) -> list[dict[str, Any]]:
    if not services.settings.webhooks.endpoints:
        return []
    found = await services.webhook_log.list(limit=MOST_DELIVERIES)
    return [delivery_row(each) for each in found]


def delivery_row(delivery: Delivery) -> dict[str, Any]:
    """Return the values of a row of webhook deliveries."""
    return {
        "id": delivery.id,
        "event": delivery.type,
        "endpoint": delivery.endpoint,
        "state": delivery.state,
        "level": delivery_level(delivery.state, delivery.attempts),
        "attempts": delivery.attempts,
        "at": time_text(delivery.at),
        "next": time_text(delivery.due_at),
        "problem": delivery.problem or "",
    }


def alert_row(alert: Alert, at: datetime) -> dict[str, Any]:
    """Return the values of a row of alerts."""
    lasted = (alert.cleared_at or at) - alert.raised_at
    return {
        "id": alert.id,
        "severity": alert.severity,
        "level": LEVELS[alert.severity],
        "rule": alert.rule.replace("_", " "),
        "subject": alert.subject,
        "message": alert.message,
        "raised": time_text(alert.raised_at),
        "cleared": time_text(alert.cleared_at),
        "lasted": duration_text(lasted.total_seconds()),
    }

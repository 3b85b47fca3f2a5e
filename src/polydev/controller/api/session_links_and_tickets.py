"""Tickets for one use: a viewer's connection, or a link to a session's page.

`sign_in_links` has those that sign a browser in. A ticket has the rights of the caller who made it,
and ends with them. Only tickets appear in URLs; the keys and cookies that they are exchanged for
never do.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field, StringConstraints

from polydev.controller.api.documented_errors import error_responses
from polydev.controller.api.json_route import JsonRoute
from polydev.controller.api.request_bodies import RequestBody
from polydev.controller.api.sessions import SessionId, session_for
from polydev.controller.api_model import ApiModel
from polydev.controller.app_services import Services
from polydev.controller.auth.authentication import BEARER, Asking
from polydev.controller.auth.client_address import asked_from
from polydev.controller.entities import Caller
from polydev.controller.url_paths import screen_path, viewer_page
from polydev.errors import NotAuthenticated, SessionExpired

# From the answer to the connection that uses it.
VIEWER_SECONDS = 30.0
MOST_LINK_SECONDS = 24 * 3600
MOST_TICKET_CHARACTERS = 200
TICKET = "CxEgbaMXQm2p5Xo4b0F2d0VJkq3b1sM7c9aZr8nT1yU"
SESSION = "5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01"

TicketText = Annotated[
    str, StringConstraints(min_length=1, max_length=MOST_TICKET_CHARACTERS, pattern=r"^[!-~]+$")
]


class TicketRequest(RequestBody):
    """Make a ticket.

    purpose      `viewer`: one connection to the screen; `page`: the session's page, in a frame or
                 in somebody else's browser
    viewOnly     the ticket only lets its user watch
    """

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"purpose": "page", "viewOnly": True}]}
    )

    purpose: Literal["viewer", "page"] = "viewer"
    view_only: bool = Field(default=False, alias="viewOnly")
    expires_in_seconds: float | None = Field(
        default=None,
        alias="expiresInSeconds",
        ge=1,
        le=MOST_LINK_SECONDS,
        allow_inf_nan=False,
        description="By when the page must be opened; by default `web.ticket_seconds`",
    )


class TicketAnswer(ApiModel):
    """`url` is the path to connect to, or to open."""

    model_config = ConfigDict(
        title="Ticket",
        json_schema_extra={
            "examples": [
                {
                    "ticket": TICKET,
                    "url": f"/session/{SESSION}?ticket={TICKET}",
                    "expiresAt": "2026-11-21T10:20:00Z",
                    "viewOnly": True,
                }
            ]
        },
    )

    ticket: str
    url: str
    expires_at: datetime
    view_only: bool


class RedeemRequest(RequestBody):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"ticket": TICKET}]})

    ticket: TicketText


class KeyAnswer(ApiModel):
    """`key` is sent as a Bearer token, for the one session."""

    model_config = ConfigDict(
        title="Key",
        json_schema_extra={
            "examples": [
                {
                    "key": f"pdk_{TICKET}",
                    "sessionId": SESSION,
                    "viewOnly": True,
                    "expiresAt": "2026-11-21T14:15:00Z",
                }
            ]
        },
    )

    key: str
    session_id: str
    view_only: bool
    expires_at: datetime


def routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/api/auth", tags=["sessions"], route_class=JsonRoute)
    _add_tickets(router, services)
    _add_redeem(router, services)
    return router


def _add_tickets(router: APIRouter, services: Services) -> None:
    @router.post(
        "/session/{session_id}/tickets",
        status_code=201,
        summary="Make a ticket for the session's screen, or a link to its page",
        dependencies=[BEARER],
        responses=error_responses(400, 404, 410, 422),
    )
    async def create_ticket(
        session_id: SessionId, body: TicketRequest, caller: Asking
    ) -> TicketAnswer:
        session = await session_for(services, caller, session_id)
        if not session.is_live:
            raise SessionExpired(f"the session is over ({session.state})", "start another session")
        page_seconds = body.expires_in_seconds or services.settings.web.ticket_seconds
        seconds = page_seconds if body.purpose == "page" else VIEWER_SECONDS
        ticket, until = await services.tickets.create(
            body.purpose, caller, seconds, session.id, view_only=body.view_only
        )
        path = viewer_page(session.id) if body.purpose == "page" else screen_path(session.id)
        return TicketAnswer(
            ticket=ticket,
            url=f"{path}?{urlencode({'ticket': ticket})}",
            expires_at=until,
            view_only=body.view_only or caller.view_only,
        )


def _add_redeem(router: APIRouter, services: Services) -> None:
    @router.post(
        "/redeem",
        summary="Exchange a page's ticket for the key to its session; needs no token",
        responses=error_responses(400, 401, 413, 422, 429, 503),
    )
    async def redeem(body: RedeemRequest, request: Request) -> KeyAnswer:
        looked_up = _redeemed(services, body.ticket)
        caller = await services.authenticator.counted(looked_up, *asked_from(request.scope))
        assert caller.session_id is not None
        services.request_limiter.take(caller.counted_as)
        session = await services.sessions.get(caller.session_id)
        if not session.is_live:
            raise SessionExpired(f"the session is over ({session.state})", "ask for another link")
        lifetime = services.settings.session.max_seconds
        key, until = await services.sign_ins.create(caller, lifetime)
        return KeyAnswer(
            key=key, session_id=session.id, view_only=caller.view_only, expires_at=until
        )


async def _redeemed(services: Services, ticket: str) -> Caller:
    caller = await services.tickets.redeem(ticket, "page")
    if caller is None:
        raise NotAuthenticated(
            "the link was used before, has expired or is not valid",
            "ask for another link",
        )
    return caller

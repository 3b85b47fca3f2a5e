"""A session's events as server-sent events, so that clients need not poll."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Set
from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from fastapi.responses import StreamingResponse

from polydev.controller.api.documented_errors import error_responses
from polydev.controller.api.pagination import MAX_ID
from polydev.controller.api.sessions import SessionId, session_for
from polydev.controller.app_services import Services
from polydev.controller.auth.authentication import BEARER, Asking
from polydev.controller.auth.revocation_watch import AccessEnd
from polydev.controller.entities import Caller, SessionNews
from polydev.controller.session_and_vm_states import SESSION_ENDS

MEDIA_TYPE = "text/event-stream"
# A proxy that compresses the stream may delay events.
UNTOUCHED = {"Cache-Control": "no-store, no-transform"}
RETRY_MILLISECONDS = 1000
PING_SECONDS = 15.0
# The first pings follow an event quickly: a command such as `curl | sed '/…/q'` only ends when curl
# has something more to write.
FIRST_PING_SECONDS = 0.25
PING = ": ping\n\n"
# Spectators see the screen, but not what the tool says or which key credentials are encrypted to.
OWNERS_KINDS: Set[str] = frozenset(("login", "credentials"))
EXAMPLE = (
    f"retry: {RETRY_MILLISECONDS}\n\n"
    "id: 41\nevent: stage\n"
    'data: {"at": "2026-11-21T10:15:09+00:00", "stage": "network", "seconds": 8.9}\n\n'
    "id: 42\nevent: state\n"
    'data: {"at": "2026-11-21T10:15:22+00:00", "state": "vm_created"}\n\n'
)
DESCRIPTION = (
    "An event is `state`, `queued`, `booting`, `stage`, `login`, `credentials`, `paused`, `awake`, "
    "`unhealthy` or `healthy`. `id` is its number: send it as `Last-Event-ID` to continue after it."
    " The stream ends with the session. It also ends when the caller loses access: the event "
    "`over`, without an id, has the `reason`. A browser's EventSource cannot set headers and "
    "sends its token as `?access_token=`."
)

LastEventId = Annotated[
    int,
    Header(alias="Last-Event-ID", ge=0, le=MAX_ID, description="The number of the last event read"),
]


def routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/api/auth", tags=["sessions"], dependencies=[BEARER])

    @router.get(
        "/session/{session_id}/events",
        summary="Events of a session, as a stream",
        description=DESCRIPTION,
        response_class=StreamingResponse,
        responses={
            200: {"description": "The events", "content": {MEDIA_TYPE: {"example": EXAMPLE}}},
            204: {"description": "The session is over, and all its events were read"},
            **error_responses(404, 422),
        },
    )
    async def get_events(
        session_id: SessionId, caller: Asking, last_event_id: LastEventId = 0
    ) -> Response:
        session = await session_for(services, caller, session_id)
        if not session.is_live and not await services.sessions.news(session.id, last_event_id, 1):
            return Response(status_code=204)  # tells an EventSource not to come again
        services.stream_limit.check(caller.counted_as)
        text = stream(services, caller, session.id, last_event_id, session.user_id)
        return StreamingResponse(text, media_type=MEDIA_TYPE, headers=UNTOUCHED)

    return router


async def stream(
    services: Services, caller: Caller, session_id: str, after: int, owner_id: str | None = None
) -> AsyncGenerator[str, None]:
    """Yield events after that number, until session, service or the caller's access ends."""
    access = services.token_watch.until_invalid(caller, owner_id)
    with services.stream_limit.reading(caller.counted_as), access as access_end:
        yield f"retry: {RETRY_MILLISECONDS}\n\n"
        async with services.event_notifier.subscribed():
            hidden = OWNERS_KINDS if caller.view_only else frozenset()
            async for text in _news(services, session_id, after, access_end, hidden):
                yield text


async def _news(
    services: Services, session_id: str, after: int, access_end: AccessEnd, hidden: Set[str]
) -> AsyncIterator[str]:
    pause = FIRST_PING_SECONDS
    while not services.ending.is_set():
        if access_end.done():
            yield over_text(access_end.result())
            return
        changed = services.event_notifier.next_change()
        found = await services.sessions.news(session_id, after)
        for each in found:
            if each.kind not in hidden:
                yield event_text(each)
            after = each.number
            pause = FIRST_PING_SECONDS
            if is_end(each):
                return
        if not found and not await _woken(changed, access_end, pause):
            yield PING
            is_quiet, pause = pause >= PING_SECONDS, min(2 * pause, PING_SECONDS)
            if is_quiet and not (await services.sessions.get(session_id)).is_live:
                return  # it resumed after the end


async def _woken(changed: asyncio.Event, access_end: AccessEnd, seconds: float) -> bool:
    """Return whether anything changed before the next ping is due."""
    notified = asyncio.ensure_future(changed.wait())
    try:
        either: set[asyncio.Future[Any]] = {notified, access_end}
        done, _ = await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        notified.cancel()
    return bool(done)


def is_end(news: SessionNews) -> bool:
    return news.kind == "state" and news.data.get("state") in SESSION_ENDS


def event_text(news: SessionNews) -> str:
    """Return the text of one event. JSON has no line breaks, as the format demands."""
    data = json.dumps({"at": news.at.isoformat(), **news.data})
    return f"id: {news.number}\nevent: {news.kind}\ndata: {data}\n\n"


def over_text(reason: str) -> str:
    """Return the last event for a client without access. It has no number, so none is missed."""
    return f"event: over\ndata: {json.dumps({'reason': reason})}\n\n"

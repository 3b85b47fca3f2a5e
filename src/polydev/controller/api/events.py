"""A session's news as server-sent events, so that a page need not ask again and again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Set
from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from fastapi.responses import StreamingResponse

from polydev.controller.api.error_responses import error_responses
from polydev.controller.api.pagination import MAX_ID
from polydev.controller.api.sessions import SessionId, session_for
from polydev.controller.auth.authentication import BEARER, Asking
from polydev.controller.auth.token_watch import AccessEnd
from polydev.controller.model import Caller, SessionNews
from polydev.controller.services import Services
from polydev.controller.states import SESSION_ENDS

MEDIA_TYPE = "text/event-stream"
# A proxy that compresses it may hold back what is to come at once.
UNTOUCHED = {"Cache-Control": "no-store, no-transform"}
RETRY_MILLISECONDS = 1000
PING_SECONDS = 15.0
# Pings come soon after news at first: a program that has read enough, as `curl | sed '/…/q'`, only
# notices that nobody reads on when it gets more to write.
FIRST_PING_SECONDS = 0.25
PING = ": ping\n\n"
# A spectator sees the screen, not what the tool says or whose key credentials are sealed to.
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
    "`unhealthy` or `healthy`. `id` is its number: a reader that comes again sends it as "
    "`Last-Event-ID` and gets what came after. The stream ends with the session, and with the "
    "token: an event `over` without an id tells the `reason`. A browser's EventSource, which "
    "cannot set headers, gives its token as `?access_token=`."
)

LastEventId = Annotated[
    int, Header(alias="Last-Event-ID", ge=0, le=MAX_ID, description="The last one read")
]


def routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/api/auth", tags=["sessions"], dependencies=[BEARER])

    @router.get(
        "/session/{session_id}/events",
        summary="What happens to a session, as it happens",
        description=DESCRIPTION,
        response_class=StreamingResponse,
        responses={
            200: {"description": "News", "content": {MEDIA_TYPE: {"example": EXAMPLE}}},
            204: {"description": "The session is over, and all its news were read"},
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
    """News after that number, until the session, the caller's right to it or the service ends."""
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
    """Whether there is something to look at before the next ping."""
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
    """One event; JSON has no line ends of its own."""
    data = json.dumps({"at": news.at.isoformat(), **news.data})
    return f"id: {news.number}\nevent: {news.kind}\ndata: {data}\n\n"


def over_text(reason: str) -> str:
    """The last event for whoever may not read on. It has no number: no news were missed."""
    return f"event: over\ndata: {json.dumps({'reason': reason})}\n\n"

"""Who looks at which session: how many may, and who must go because the session is over."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import Context

import structlog

from polydev.controller.api.newsbell import NewsBell
from polydev.controller.problems import DATABASE_ERRORS
from polydev.controller.relay.closings import (
    TOO_MANY_VIEWERS,
    Closing,
    Refused,
    closing_of,
    session_over,
)
from polydev.controller.relay.viewer import Viewer
from polydev.controller.store.sessions import Sessions
from polydev.errors import SessionNotFound

log = structlog.stdlib.get_logger(__name__)

MOST_VIEWERS = 8  # of one session
# Where nobody rings the bell: a VM that goes with its session tells at once as well.
LOOK_SECONDS = 5.0


class Seat:
    """A viewer's place before a session. It is `taken` once the viewer may look."""

    def __init__(self, session_id: str, viewer: Viewer) -> None:
        self.session_id = session_id
        self.viewer = viewer
        self.is_taken = False
        self.over: Closing | None = None

    def end(self, closing: Closing) -> None:
        self.over = closing
        if self.is_taken:  # who is not yet known to be allowed is told nothing of the session
            self.viewer.end(closing)


class Seats:
    """One question to the database for all viewers, now and then and whenever the bell rings."""

    def __init__(self, sessions: Sessions, news: NewsBell) -> None:
        self._sessions = sessions
        self._news = news
        self._seats: set[Seat] = set()
        self._watching: asyncio.Task[None] | None = None

    def viewers(self) -> Iterator[Viewer]:
        return (seat.viewer for seat in self._seats if seat.is_taken)

    @contextmanager
    def seat(self, session_id: str, viewer: Viewer) -> Iterator[Seat]:
        """A seat before the session, which is watched from now on."""
        seat = Seat(session_id, viewer)
        self._seats.add(seat)
        if self._watching is None:
            # In a context of its own: it outlives the request, whose id is not to be in its logs.
            self._watching = Context().run(asyncio.create_task, self._watch())
        try:
            yield seat
        finally:
            self._seats.remove(seat)
            if not self._seats:
                self._watching.cancel()
                self._watching = None

    def take(self, seat: Seat) -> None:
        """Let the viewer look. Raises Refused if enough do, or if the session is over."""
        if seat.over is not None:
            raise Refused(seat.over)
        taken = sum(each.session_id == seat.session_id and each.is_taken for each in self._seats)
        if taken >= MOST_VIEWERS:
            raise Refused(TOO_MANY_VIEWERS)
        seat.is_taken = True

    async def _watch(self) -> None:
        while True:
            ring = self._news.next_ring()
            try:
                await asyncio.shield(self._end_those_over())  # never cancelled: see NewsBell
            except DATABASE_ERRORS as error:
                log.warning("viewers_not_watched", error=type(error).__name__)
            except Exception:
                log.exception("viewers_not_watched")
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(ring.wait(), LOOK_SECONDS)

    async def _end_those_over(self) -> None:
        watched = {seat.session_id for seat in self._seats}
        for session_id in watched - await self._sessions.live_of(watched):
            closing = await self._why_over(session_id)
            for seat in self._seats:
                if seat.session_id == session_id:
                    seat.end(closing)

    async def _why_over(self, session_id: str) -> Closing:
        try:
            return session_over(await self._sessions.get(session_id))
        except SessionNotFound as error:
            return closing_of(error)

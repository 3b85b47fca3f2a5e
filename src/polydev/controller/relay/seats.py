"""Who looks at which session: how many may, and who must go because the session is over.

A session that has a viewer is in use: it gets its heartbeats from here, whoever looks.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import structlog

from polydev.controller.event_notifier import EventNotifier
from polydev.controller.problems import DATABASE_ERRORS
from polydev.controller.relay.beat import BEAT_SECONDS
from polydev.controller.relay.closings import (
    TOO_MANY_VIEWERS,
    VIEWER_SILENT,
    Closing,
    Refused,
    closing_of,
    session_over,
)
from polydev.controller.relay.viewer import Viewer
from polydev.controller.store.sessions import Sessions
from polydev.controller.watching import Watch
from polydev.errors import SessionNotFound

log = structlog.stdlib.get_logger(__name__)

MOST_VIEWERS = 8  # of one session
MOST_SPECTATORS = 4  # of these, those who may look only: the others keep a place
# Where nobody notifies: a VM that goes with its session tells at once as well.
LOOK_SECONDS = 5.0
# Two pings go by until a viewer that answers none is closed. One that is not listened to, since
# its VM takes nothing, is not closed, but does not count after that time either.
HEARD_SECONDS = 2 * BEAT_SECONDS + 5.0


class Seat:
    """A viewer's place before a session. It is `taken` once the viewer may look."""

    def __init__(self, session_id: str, viewer: Viewer) -> None:
        self.session_id = session_id
        self.viewer = viewer
        self.view_only = False
        self.is_taken = False
        self.over: Closing | None = None

    def end(self, closing: Closing) -> None:
        self.over = closing
        if self.is_taken:  # who is not yet known to be allowed is told nothing of the session
            self.viewer.end(closing)


class Seats:
    """One question to the database for all viewers, now and then and whenever the notifier wakes
    it; and heartbeats for all their sessions, in one transaction.
    """

    def __init__(self, sessions: Sessions, notifier: EventNotifier) -> None:
        self._sessions = sessions
        self._notifier = notifier
        self._seats: set[Seat] = set()
        self._changed = asyncio.Event()
        self._watch = Watch("viewers", self._look, self._pause)
        self._heartbeats_at = 0.0

    def viewers(self) -> Iterator[Viewer]:
        return (seat.viewer for seat in self._seats if seat.is_taken)

    def counts(self) -> Counter[str]:
        """How many look at each session, in this process."""
        return Counter(seat.session_id for seat in self._seats if seat.is_taken)

    @contextmanager
    def seat(self, session_id: str, viewer: Viewer) -> Iterator[Seat]:
        """A seat before the session, which is watched from now on."""
        seat = Seat(session_id, viewer)
        self._seats.add(seat)
        try:
            with self._watch.needed():
                yield seat
        finally:
            self._seats.remove(seat)

    def take(self, seat: Seat) -> None:
        """Let the viewer look. Raises Refused if enough do, or if the session is over."""
        if seat.over is not None:
            raise Refused(seat.over)
        taken = [
            each for each in self._seats if each.session_id == seat.session_id and each.is_taken
        ]
        spectators = sum(each.view_only for each in taken)
        if len(taken) >= MOST_VIEWERS or (seat.view_only and spectators >= MOST_SPECTATORS):
            raise Refused(TOO_MANY_VIEWERS)
        seat.is_taken = True

    async def came(self, session_id: str) -> None:
        """A viewer begins to look: its session is in use from now on."""
        await self._guarded(self._beat_for({session_id}))

    async def went(self, session_id: str, ended: Closing) -> None:
        """A viewer looks no more: from now on its session is idle, unless others look.

        When one went that answers no ping any more, nobody knows.
        """
        if ended != VIEWER_SILENT:
            await self._guarded(self._beat_for({session_id}))

    async def _look(self) -> None:
        self._changed = self._notifier.next_change()
        try:
            await self._end_those_over()
        finally:
            await self._beat_when_due()

    async def _pause(self) -> None:
        seconds = min(LOOK_SECONDS, self._sessions.watched_seconds)
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)

    async def _guarded(self, question: Coroutine[Any, Any, None]) -> None:
        try:
            await question
        except DATABASE_ERRORS as error:
            log.warning("viewers_not_watched", error=type(error).__name__)
        except Exception:
            log.exception("viewers_not_watched")

    async def _beat_when_due(self) -> None:
        """Heartbeats for the sessions of all viewers that are alive, unless they had some."""
        now = asyncio.get_running_loop().time()
        if now < self._heartbeats_at:
            return
        viewed = {
            seat.session_id
            for seat in self._seats
            if seat.is_taken and seat.viewer.was_heard_within(HEARD_SECONDS)
        }
        await self._beat_for(viewed)
        self._heartbeats_at = now + self._sessions.watched_seconds

    async def _beat_for(self, session_ids: Collection[str]) -> None:
        if session_ids:
            await self._sessions.watched(session_ids)

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

"""Who looks at which session: how many may, and who must go because the session is over.

A session that has a viewer is in use: it gets its heartbeats from here, whoever looks.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from polydev.controller.event_notifier import EventNotifier
from polydev.controller.relay.close_reasons import (
    TOO_MANY_VIEWERS,
    VIEWER_SILENT,
    CloseReason,
    ViewerRefused,
    closing_of,
    session_over,
)
from polydev.controller.relay.keepalive import PING_SECONDS
from polydev.controller.relay.viewer import Viewer
from polydev.controller.shared_poller import SharedPoller, log_failure
from polydev.controller.store.sessions import Sessions
from polydev.errors import SessionNotFound

MOST_VIEWERS = 8  # of one session
MOST_SPECTATORS = 4  # of these, those who may look only: the others keep a place
# Where nobody notifies: a VM that goes with its session tells at once as well.
POLL_SECONDS = 5.0
# Two pings go by until a viewer that answers none is closed. One that is not listened to, since
# its VM takes nothing, is not closed, but does not count after that time either.
HEARD_SECONDS = 2 * PING_SECONDS + 5.0


class ViewerEntry:
    """A viewer of a session. It is admitted once its right to look is checked."""

    def __init__(self, session_id: str, viewer: Viewer) -> None:
        self.session_id = session_id
        self.viewer = viewer
        self.view_only = False
        self.is_admitted = False
        self.over: CloseReason | None = None

    def end(self, closing: CloseReason) -> None:
        self.over = closing
        if self.is_admitted:  # who is not yet known to be allowed is told nothing of the session
            self.viewer.end(closing)


class Viewers:
    """One question to the database for all viewers, now and then and whenever the notifier wakes
    it; and heartbeats for all their sessions, in one transaction.
    """

    def __init__(self, sessions: Sessions, notifier: EventNotifier) -> None:
        self._sessions = sessions
        self._notifier = notifier
        self._entries: set[ViewerEntry] = set()
        self._changed = asyncio.Event()
        self._poller = SharedPoller("viewers", self._poll, self._pause)
        self._heartbeats_at = 0.0

    def admitted(self) -> Iterator[Viewer]:
        return (entry.viewer for entry in self._entries if entry.is_admitted)

    def counts(self) -> Counter[str]:
        """How many look at each session, in this process."""
        return Counter(entry.session_id for entry in self._entries if entry.is_admitted)

    @contextmanager
    def register(self, session_id: str, viewer: Viewer) -> Iterator[ViewerEntry]:
        """Register a viewer of the session, which is watched from now on."""
        entry = ViewerEntry(session_id, viewer)
        self._entries.add(entry)
        try:
            with self._poller.in_use():
                yield entry
        finally:
            self._entries.remove(entry)

    def admit(self, entry: ViewerEntry) -> None:
        """Let the viewer look. Raises ViewerRefused if enough do, or if the session is over."""
        if entry.over is not None:
            raise ViewerRefused(entry.over)
        others = [each for each in self._entries if each.session_id == entry.session_id]
        spectators = sum(each.view_only for each in others if each.is_admitted)
        if sum(each.is_admitted for each in others) >= MOST_VIEWERS or (
            entry.view_only and spectators >= MOST_SPECTATORS
        ):
            raise ViewerRefused(TOO_MANY_VIEWERS)
        entry.is_admitted = True

    async def joined(self, session_id: str) -> None:
        """A viewer begins to look: its session is in use from now on."""
        await self._guarded(self._send_heartbeats({session_id}))

    async def left(self, session_id: str, ended: CloseReason) -> None:
        """A viewer looks no more: from now on its session is idle, unless others look.

        When one went that answers no ping any more, nobody knows.
        """
        if ended != VIEWER_SILENT:
            await self._guarded(self._send_heartbeats({session_id}))

    async def _poll(self) -> None:
        self._changed = self._notifier.next_change()
        try:
            await self._end_closed_sessions()
        finally:
            await self._send_heartbeats_when_due()

    async def _pause(self) -> None:
        seconds = min(POLL_SECONDS, self._sessions.watched_seconds)
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)

    async def _guarded(self, question: Coroutine[Any, Any, None]) -> None:
        try:
            await question
        except Exception as error:
            log_failure("heartbeat_not_sent", error)

    async def _send_heartbeats_when_due(self) -> None:
        """Heartbeats for the sessions of all viewers that are alive, unless they had some."""
        now = asyncio.get_running_loop().time()
        if now < self._heartbeats_at:
            return
        viewed = {
            entry.session_id
            for entry in self._entries
            if entry.is_admitted and entry.viewer.was_heard_within(HEARD_SECONDS)
        }
        await self._send_heartbeats(viewed)
        self._heartbeats_at = now + self._sessions.watched_seconds

    async def _send_heartbeats(self, session_ids: Collection[str]) -> None:
        if session_ids:
            await self._sessions.watched(session_ids)

    async def _end_closed_sessions(self) -> None:
        watched = {entry.session_id for entry in self._entries}
        for session_id in watched - await self._sessions.live_of(watched):
            closing = await self._why_over(session_id)
            for entry in self._entries:
                if entry.session_id == session_id:
                    entry.end(closing)

    async def _why_over(self, session_id: str) -> CloseReason:
        try:
            return session_over(await self._sessions.get(session_id))
        except SessionNotFound as error:
            return closing_of(error)

"""Registry of the viewers of each session: limits their number, ends them with the session.

A session with a viewer is in use, so the registry sends its heartbeats.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from polydev.controller.event_notifier import EventNotifier
from polydev.controller.poll_while_needed import SharedPoller, log_failure
from polydev.controller.relay.close_reasons import (
    TOO_MANY_VIEWERS,
    VIEWER_SILENT,
    CloseReason,
    ViewerRefused,
    close_reason_for,
    session_over,
)
from polydev.controller.relay.keepalive import PING_SECONDS
from polydev.controller.relay.limits import MOST_SPECTATORS, MOST_VIEWERS
from polydev.controller.relay.viewer import Viewer
from polydev.controller.store.sessions import Sessions
from polydev.errors import SessionNotFound
from polydev.vm.cancel_on_timeout import limited

# In case no event says that a session ended; its VM closes the connection at once as well.
POLL_SECONDS = 5.0
# A viewer that answers no ping is closed after two of them. While its VM takes no bytes, a viewer
# is not read and so not closed, but after this time it does not keep its session in use either.
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
        if self.is_admitted:  # before that, the viewer must learn nothing about the session
            self.viewer.end(closing)


class Viewers:
    """The viewers of this process, with one query for all of them, and one for all heartbeats.

    The query runs every few seconds, and at once when a session has a new event.
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
        """Return the number of viewers of each session, in this process."""
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
        """Let the viewer see the screen. Raises ViewerRefused: too many, or session over."""
        if entry.over is not None:
            raise ViewerRefused(entry.over)
        admitted = [each for each in self._entries if each.is_admitted]
        others = [each for each in admitted if each.session_id == entry.session_id]
        spectators = sum(each.view_only for each in others)
        if len(others) >= MOST_VIEWERS or (entry.view_only and spectators >= MOST_SPECTATORS):
            raise ViewerRefused(TOO_MANY_VIEWERS)
        entry.is_admitted = True

    async def joined(self, session_id: str) -> None:
        """Send a heartbeat for the session of a new viewer."""
        await self._guarded(self._send_heartbeats({session_id}))

    async def left(self, session_id: str, ended: CloseReason) -> None:
        """Send a last heartbeat for the session of a viewer that has gone: idle time starts now.

        A viewer that answered no ping may have gone long ago, so it gets none.
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
            await limited(seconds, self._changed.wait())

    async def _guarded(self, question: Coroutine[Any, Any, None]) -> None:
        try:
            await question
        except Exception as error:
            log_failure("heartbeat_not_sent", error)

    async def _send_heartbeats_when_due(self) -> None:
        """Send heartbeats for the sessions of all live viewers, unless the last ones are recent."""
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
            return close_reason_for(error)

"""Sessions: started with their VM, kept alive, ended; each change in one transaction with it."""

from __future__ import annotations

import builtins
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.entities import Session, SessionNews, now
from polydev.controller.session_and_vm_states import (
    LoginStatus,
    SessionEvent,
    VmState,
    login_events,
)
from polydev.controller.settings import WATCHED_SECONDS, Quotas, SessionLimits
from polydev.controller.store import session_errors, tables
from polydev.controller.store.credential_holders import hold_credentials
from polydev.controller.store.ended_sessions import delete_ended_sessions
from polydev.controller.store.pagination import paginated
from polydev.controller.store.row_mapping import LIVE_SESSIONS, NEWS, SESSIONS, news_of, session_of
from polydev.controller.store.session_changes import (
    add_news,
    add_state_news,
    change_session,
    change_vm,
    locked_live_session,
    locked_session,
    no_session,
    queue_webhook,
    write_session,
)
from polydev.controller.store.session_expiry import after_heartbeat, expiry_reason
from polydev.controller.store.transactions import Database, uninterrupted
from polydev.controller.store.usage import add_use, refuse_beyond_quota
from polydev.controller.store.users import lock_user
from polydev.controller.store.vm_slots import take_pooled, take_slot
from polydev.controller.usage_accounting import Use, day_of

_sessions, _news = tables.sessions.c, tables.session_news.c
LIVE = _sessions.ended_at.is_(None)
# More than any host has slots: the limit for lists of all live sessions.
MOST_LIVE_SESSIONS = 1000
MOST_LOGIN_NEWS = 100
KEPT_SESSION_EVENTS = timedelta(days=7)  # after the end of their session


@dataclass(frozen=True)
class NewSession:
    """A request for a session. The same user and idempotency key always get the same session.

    recipient       the age recipient to which the credentials of its login are sealed
    use_stored      whether it starts with the user's stored credentials
    holds_alone     whether no other session may use these meanwhile
    """

    user_id: str
    provider: str
    image_digest: str
    idempotency_key: str | None = None
    recipient: str | None = None
    use_stored: bool = False
    holds_alone: bool = False


@uninterrupted
class Sessions:
    def __init__(
        self,
        database: Database,
        limits: SessionLimits,
        clock: Callable[[], datetime] = now,
        quotas: Quotas | None = None,
    ) -> None:
        self._database = database
        self._limits = limits
        self._clock = clock
        self._quotas = quotas or Quotas()

    async def start(self, new: NewSession) -> tuple[Session, bool]:
        """Start a session with a VM in a slot of its own; return it, and whether it is new.

        Raises UserNotFound, SessionError (the key was used for another request), TooManySessions,
        QuotaExceeded and CapacityError, and for stored credentials CredentialsNotFound,
        CredentialsSealed and CredentialsInUse. Nothing is written then.
        """
        async with self._database.writing() as connection:
            await lock_user(connection, new.user_id)
            known = await _session_of_key(connection, new)
            if known is not None:
                if not _is_as_asked(known, new):
                    raise session_errors.key_used(known)
                return known, False
            live = await _live_of_user(connection, new.user_id)
            if len(live) >= self._limits.per_user:
                raise session_errors.too_many(live, self._limits.per_user)
            await refuse_beyond_quota(connection, self._quotas, new.user_id, self._clock())
            return await self._make(connection, new), True

    async def _make(self, connection: AsyncConnection, new: NewSession) -> Session:
        at = self._clock()
        vm_id, vm_state = await _take_vm(connection, new.image_digest, at)
        session = Session(
            id=str(uuid.uuid4()),
            user_id=new.user_id,
            provider=new.provider,
            state="vm_creating",
            vm_id=vm_id,
            created_at=at,
            changed_at=at,
            expires_at=at + timedelta(seconds=self._limits.max_seconds),
            recipient=new.recipient,
            stored_credentials="wanted" if new.use_stored else None,
        )
        if new.use_stored:
            owner = (new.user_id, new.provider)
            await hold_credentials(connection, *owner, session.id, alone=new.holds_alone)
        await connection.execute(
            sa.insert(tables.sessions).values(**vars(session), idempotency_key=new.idempotency_key)
        )
        await add_use(connection, {(new.user_id, day_of(at)): Use(sessions=1)})
        await add_state_news(connection, session)
        if vm_state == "starting":
            return await change_session(connection, session, "vm_launched", at)
        return session

    async def get(self, session_id: str) -> Session:
        """Return a session. Raises SessionNotFound."""
        async with self._database.reading() as connection:
            found = await connection.execute(SESSIONS.where(_sessions.id == session_id))
            row = found.mappings().one_or_none()
        if row is None:
            raise no_session(session_id)
        return session_of(row)

    async def list(
        self,
        user_id: str | None = None,
        live_only: bool = False,
        limit: int = 100,
        before: Session | None = None,
    ) -> builtins.list[Session]:
        """List sessions of a user or of all, newest first; with `before`, those that follow it."""
        asked = LIVE_SESSIONS.c if live_only else _sessions
        statement = sa.select(LIVE_SESSIONS) if live_only else SESSIONS
        if user_id is not None:
            statement = statement.where(asked.user_id == user_id)
        async with self._database.reading() as connection:
            found = await connection.execute(paginated(statement, asked, limit, before))
            return [session_of(row) for row in found.mappings()]

    async def live_of(self, ids: Collection[str]) -> set[str]:
        """Return which of these sessions exist and are live."""
        statement = sa.select(_sessions.id).where(_sessions.id.in_(ids), LIVE)
        async with self._database.reading() as connection:
            return set((await connection.execute(statement)).scalars())

    async def of_vm(self, vm_id: str) -> Session | None:
        """Return the session of a VM, live or over."""
        async with self._database.reading() as connection:
            found = await connection.execute(SESSIONS.where(_sessions.vm_id == vm_id))
            row = found.mappings().one_or_none()
        return session_of(row) if row else None

    async def of_vms(self, vm_ids: Collection[str]) -> dict[str, Session]:
        """Return the sessions of these VMs, live or over, by the VM's id."""
        async with self._database.reading() as connection:
            found = await connection.execute(SESSIONS.where(_sessions.vm_id.in_(vm_ids)))
            return {row["vm_id"]: session_of(row) for row in found.mappings()}

    async def live_of_vm(self, vm_id: str) -> Session | None:
        session = await self.of_vm(vm_id)
        return session if session is not None and session.is_live else None

    async def heartbeat(self, session_id: str) -> Session:
        """Extend a session to `idle_seconds` from now, if its VM is up.

        A heartbeat does not shorten the time that a VM has to boot. Raises SessionNotFound and
        SessionExpired.
        """
        async with self._database.writing() as connection:
            session = await locked_live_session(connection, session_id)
            used = after_heartbeat(session, self._clock(), self._limits)
            await _write_use(connection, [used])
            return used

    @property
    def watched_seconds(self) -> float:
        """Return how often to call `watched`, so that no heartbeat becomes too old in between."""
        limits = self._limits
        parts = (limits.idle_seconds, limits.heartbeat_live_seconds)
        return min(WATCHED_SECONDS, *(each / 3 for each in parts))

    async def watched(self, ids: Collection[str]) -> None:
        """Write a heartbeat for these sessions if they are live, in one transaction.

        Their VMs are in use, since they have viewers.
        """
        # In one order, so that two processes cannot deadlock.
        live = SESSIONS.where(_sessions.id.in_(ids), LIVE).order_by(_sessions.id)
        async with self._database.writing() as connection:
            found = await connection.execute(live.with_for_update(key_share=True))
            at = self._clock()
            rows = found.mappings().all()
            await _write_use(
                connection, [after_heartbeat(session_of(row), at, self._limits) for row in rows]
            )
            viewed = tables.vms.c.id.in_([row["vm_id"] for row in rows])
            await connection.execute(sa.update(tables.vms).where(viewed).values(used_at=at))

    async def apply(
        self, session_id: str, event: SessionEvent, reason: str | None = None
    ) -> Session:
        """Change the state of a session by an event; its VM stops when it ends.

        Raises SessionNotFound, SessionExpired if it is over, and ValueError, which is a bug, for
        an event that its state does not allow.
        """
        async with self._database.writing() as connection:
            session = await locked_session(connection, session_id)
            return await change_session(connection, session, event, self._clock(), reason=reason)

    async def set_login(self, session_id: str, login: LoginStatus, detail: str = "") -> Session:
        """Set how far the tool's login is in a session, and add news if that changed.

        `detail` is why it failed. A session gets at most MOST_LOGIN_NEWS of these news, since its
        VM could report anything. Raises SessionNotFound and SessionExpired.
        """
        session = await self.get(session_id)
        if _is_known(session, login, detail):
            return session  # the usual case, in which nothing is written
        async with self._database.writing() as connection:
            session, at = await locked_live_session(connection, session_id), self._clock()
            if session.waits_for_injection:
                return session  # a request from before its VM was ready
            for event in login_events(session.state, login):
                # Its VM is in use: if it is just being paused, it wakes.
                await change_vm(connection, session.vm_id, used_at=at)
                session = await change_session(connection, session, event, at)
            if session.state == "oauth_pending" and not _is_known(session, login, detail):
                values = {"login": login, "login_detail": detail or None}
                session = await write_session(connection, session, **values)
                words = {"status": login} | ({"detail": detail} if detail else {})
                if await _login_news(connection, session_id) >= MOST_LOGIN_NEWS:
                    return session
                if login == "waiting":
                    await queue_webhook(connection, session, "session.login_waiting", at)
                await add_news(connection, session_id, at, "login", words)
            return session

    async def complete_due(self) -> builtins.list[Session]:
        """Complete all sessions that are due after their handover, and return them."""
        due = sa.select(_sessions.id).where(LIVE, _sessions.completes_at <= self._clock())
        async with self._database.reading() as connection:
            ids = (await connection.execute(due.order_by(_sessions.completes_at))).scalars().all()
        completed = [await self._complete(session_id) for session_id in ids]
        return [session for session in completed if session is not None]

    async def _complete(self, session_id: str) -> Session | None:
        """Complete a session; None if it ended before."""
        async with self._database.writing() as connection:
            session = await locked_session(connection, session_id)
            if session.state != "authenticated":
                return None
            return await change_session(connection, session, "complete", self._clock())

    async def expire_due(self) -> builtins.list[Session]:
        """End all live sessions that have expired, and return them."""
        due = sa.select(_sessions.id).where(LIVE, _sessions.expires_at <= self._clock())
        async with self._database.reading() as connection:
            ids = (await connection.execute(due.order_by(_sessions.expires_at))).scalars().all()
        expired = [await self._expire(session_id) for session_id in ids]
        return [session for session in expired if session is not None]

    async def _expire(self, session_id: str) -> Session | None:
        """Expire a session; None if it got a heartbeat or ended before."""
        async with self._database.writing() as connection:
            session, at = await locked_session(connection, session_id), self._clock()
            if not session.is_live or session.expires_at > at:
                return None
            reason = expiry_reason(session, self._limits)
            return await change_session(connection, session, "expire", at, reason=reason)

    async def news(
        self, session_id: str, after: int = 0, limit: int = 100
    ) -> builtins.list[SessionNews]:
        """Return news after that number, oldest first."""
        statement = NEWS.where(_news.session_id == session_id, _news.number > after)
        async with self._database.reading() as connection:
            found = await connection.execute(statement.order_by(_news.number).limit(limit))
            return [news_of(row) for row in found.mappings()]

    async def add_news(self, session_id: str, kind: str, data: Mapping[str, object]) -> None:
        """Add news, without addresses, tokens and credentials. Raises SessionNotFound."""
        async with self._database.writing() as connection:
            await locked_session(connection, session_id)
            await add_news(connection, session_id, self._clock(), kind, data)

    async def add_news_of_vms(self, kind: str, words: Mapping[str, Mapping[str, object]]) -> None:
        """Add news to the live sessions of these VMs, in one transaction."""
        whose = SESSIONS.where(_sessions.vm_id.in_(words), LIVE).order_by(_sessions.id)
        async with self._database.writing() as connection:
            found = await connection.execute(whose.with_for_update(key_share=True))
            at = self._clock()
            for session in map(session_of, found.mappings().all()):
                await add_news(connection, session.id, at, kind, words[session.vm_id])

    async def latest_news_number(self) -> int:
        """Return the number of the newest news of all sessions; 0 if there are none."""
        statement = sa.select(sa.func.max(_news.number))
        async with self._database.reading() as connection:
            return (await connection.execute(statement)).scalar_one() or 0

    async def prune(self, before: datetime) -> int:
        """Delete news from before that time of sessions that ended before it; return how many.

        The sessions stay. There are few news of that age, so frequent calls are cheap.
        """
        over = sa.exists().where(_sessions.id == _news.session_id, _sessions.ended_at < before)
        return await self._database.delete(tables.session_news, _news.at < before, over)

    async def delete_ended(self, before: datetime, limit: int) -> int:
        """Delete sessions that ended before that time with their VMs and news; return how many.

        Their idempotency keys can be used again.
        """
        return await delete_ended_sessions(self._database, before, limit)


def _is_as_asked(session: Session, new: NewSession) -> bool:
    has_stored = session.stored_credentials is not None
    found = (session.provider, session.recipient, has_stored)
    return found == (new.provider, new.recipient, new.use_stored)


async def _login_news(connection: AsyncConnection, session_id: str) -> int:
    """Count the news about a session's login."""
    news = tables.session_news.c
    count = sa.select(sa.func.count()).where(news.session_id == session_id, news.kind == "login")
    return int((await connection.execute(count)).scalar_one())


def _is_known(session: Session, login: LoginStatus, detail: str) -> bool:
    """Return whether a session has this login state already, so that nothing changes."""
    if not session.is_live or login_events(session.state, login):
        return False
    is_told = (session.login, session.login_detail or "") == (login, detail)
    return session.state != "oauth_pending" or is_told


async def _session_of_key(connection: AsyncConnection, new: NewSession) -> Session | None:
    if new.idempotency_key is None:
        return None
    found = await connection.execute(
        SESSIONS.where(
            _sessions.user_id == new.user_id, _sessions.idempotency_key == new.idempotency_key
        )
    )
    row = found.mappings().one_or_none()
    return session_of(row) if row else None


async def _take_vm(
    connection: AsyncConnection, image_digest: str, at: datetime
) -> tuple[str, VmState]:
    """Take the VM that will be ready first. Raises CapacityError.

    A VM that the pool is still making is slower than a new one, so it is taken only if no slot is
    free.
    """
    if primed := await take_pooled(connection, at, ("ready",)):
        return primed
    if vm_id := await take_slot(connection, image_digest, at):
        return vm_id, "creating"
    if unprimed := await take_pooled(connection, at, ("starting", "creating")):
        return unprimed
    raise await session_errors.no_slot(connection)


async def _live_of_user(connection: AsyncConnection, user_id: str) -> builtins.list[str]:
    live = LIVE_SESSIONS.c
    statement = sa.select(live.id).where(live.user_id == user_id)
    found = await connection.execute(statement.order_by(live.created_at))
    return list(found.scalars())


async def _write_use(connection: AsyncConnection, used: builtins.list[Session]) -> None:
    if not used:
        return
    statement = (
        sa.update(tables.sessions)
        .where(_sessions.id == sa.bindparam("of"))
        .values(heartbeat_at=sa.bindparam("at"), expires_at=sa.bindparam("until"))
    )
    values = [{"of": each.id, "at": each.heartbeat_at, "until": each.expires_at} for each in used]
    await connection.execute(statement, values)

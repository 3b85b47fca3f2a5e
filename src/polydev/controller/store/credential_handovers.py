"""Handover of credentials by a VM: sealed and stored in one transaction with the session's state.

Every step can be repeated: a session has one receipt, which is of the stored credentials.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import sqlalchemy as sa

from polydev.controller.credential_encryption import Keyring, Sealed, sealed_to
from polydev.controller.entities import Session, now
from polydev.controller.store import tables
from polydev.controller.store.credential_log import log_session_event
from polydev.controller.store.credential_receipts import receipt_values, receipt_words
from polydev.controller.store.credentials import write_credentials
from polydev.controller.store.session_changes import add_news, change_session, locked_live_session
from polydev.controller.store.transactions import Database, uninterrupted
from polydev.controller.store.users import lock_user

NO_KEY = (
    "this host cannot store credentials, since it has no key to seal them with; the VM has them "
    "until the session ends"
)


@uninterrupted
class CredentialHandovers:
    """`complete_after_seconds`: when a session is completed after its handover; None: never."""

    def __init__(
        self,
        database: Database,
        keys: Keyring | None,
        complete_after_seconds: float | None,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._database = database
        self._keys = keys
        self._complete_after_seconds = complete_after_seconds
        self._clock = clock

    def can_keep(self, session: Session) -> bool:
        """Return whether a session's credentials can be sealed, to a recipient or with a key."""
        return session.recipient is not None or self._keys is not None

    async def hand_over(self, session: Session, plain: bytes) -> Session:
        """Store the credentials of a session's login, which are compact JSON; return the session.

        Does nothing if the login is done already. Raises SessionNotFound, SessionExpired and
        UserNotFound.
        """
        sealed = self._sealed(session, plain)
        async with self._database.writing() as connection:
            await lock_user(connection, session.user_id)
            session = await locked_live_session(connection, session.id)
            if session.state != "oauth_pending":
                return session
            at = self._clock()
            owner = (session.user_id, session.provider)
            await write_credentials(connection, *owner, sealed, session.id, at)
            await log_session_event(connection, at, "handed_over", session)
            values = {
                "login": "done",
                "login_detail": None,
                **receipt_values(plain, at),
                "completes_at": self._completes_at(at),
            }
            session = await change_session(connection, session, "oauth_done", at, values=values)
            await add_news(connection, session.id, at, "credentials", receipt_words(session))
            return session

    async def finish_without(self, session_id: str, because: str) -> Session:
        """Note that a login is done whose credentials cannot be stored, and why.

        Does nothing if the login is done already. Raises SessionNotFound and SessionExpired.
        """
        async with self._database.writing() as connection:
            session = await locked_live_session(connection, session_id)
            if session.state != "oauth_pending":
                return session
            at, values = self._clock(), {"login": "done", "login_detail": because}
            session = await change_session(connection, session, "oauth_done", at, values=values)
            words = {"provider": session.provider, "kept": False, "because": because}
            await add_news(connection, session_id, at, "credentials", words)
            return session

    async def wiped(self, session_id: str) -> None:
        """Note that a session's VM has no copy of the handed-over credentials any more."""
        of_it = tables.sessions.c.id == session_id
        async with self._database.writing() as connection:
            statement = sa.update(tables.sessions).where(of_it).values(wiped_at=self._clock())
            await connection.execute(statement)

    def _sealed(self, session: Session, plain: bytes) -> Sealed:
        if session.recipient is not None:
            return sealed_to(session.recipient, plain)
        assert self._keys is not None, "checked before with can_keep"
        return self._keys.seal(plain, session.user_id, session.provider)

    def _completes_at(self, at: datetime) -> datetime | None:
        if self._complete_after_seconds is None:
            return None
        return at + timedelta(seconds=self._complete_after_seconds)

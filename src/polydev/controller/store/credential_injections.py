"""Injection of stored credentials into a session's VM, and reading them back before it ends."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import sqlalchemy as sa

from polydev.controller.credential_encryption import Keyring
from polydev.controller.entities import Session, now
from polydev.controller.store import tables
from polydev.controller.store.credential_holders import (
    hold_credentials,
    no_key,
    of_user,
    release_credentials,
)
from polydev.controller.store.credential_log import log_session_event
from polydev.controller.store.credentials import columns, sealed_of
from polydev.controller.store.session_changes import (
    add_news,
    change_session,
    locked_live_session,
    locked_session,
    write_session,
)
from polydev.controller.store.transactions import Database, uninterrupted
from polydev.controller.store.users import lock_user

_kept = tables.credentials.c


@uninterrupted
class CredentialInjections:
    """Each step can be repeated, also by another process."""

    def __init__(
        self, database: Database, keys: Keyring | None, clock: Callable[[], datetime] = now
    ) -> None:
        self._database = database
        self._keys = keys
        self._clock = clock

    async def opened(self, session: Session, *, alone: bool) -> bytes:
        """Return the stored credentials for a session, as compact JSON, and let it hold them.

        alone   whether no other session may have them; asked again, since the owner may have
                stored others since the session began

        Raises CredentialsNotFound, CredentialsSealed, CredentialsInUse, CredentialsLocked,
        NoCredentialsKey and SessionExpired.
        """
        owner = (session.user_id, session.provider)
        columns_of_it = (_kept.key_id, _kept.sealed, _kept.recipient)
        asked = sa.select(*columns_of_it).where(*of_user(*owner))
        async with self._database.writing() as connection:
            await lock_user(connection, session.user_id)
            session = await locked_live_session(connection, session.id)
            await hold_credentials(connection, *owner, session.id, alone=alone)
            row = (await connection.execute(asked)).mappings().one()
        if self._keys is None:
            raise no_key()
        return self._keys.open(sealed_of(row), *owner)

    async def injected(self, session_id: str) -> None:
        """Note that the VM's tool is logged in with the credentials."""
        async with self._database.writing() as connection:
            session = await locked_session(connection, session_id)
            if not session.waits_for_injection:
                return
            at = self._clock()
            await log_session_event(connection, at, "injected", session)
            values = {"login": "done", "login_detail": None, "stored_credentials": "injected"}
            await change_session(connection, session, "injected", at, values=values)

    async def refused(
        self, session_id: str, because: str, *, tried: bool = False, is_left: bool = False
    ) -> None:
        """Note that the credentials could not be injected, and why: the user has to log in.

        tried    whether the tool had them, and may have used their refresh token
        is_left  whether the VM may still have them; then the session holds them until it is gone
        """
        async with self._database.writing() as connection:
            session = await locked_session(connection, session_id)
            if not session.waits_for_injection:
                return
            if not is_left:
                await release_credentials(connection, session.id, stale=tried)
            values = {"login_detail": because, "stored_credentials": "refused"}
            await write_session(connection, session, **values)
            words = {"provider": session.provider, "injected": False, "because": because}
            await add_news(connection, session.id, self._clock(), "credentials", words)

    async def is_holder(self, session_id: str) -> bool:
        """Return whether a session holds credentials until its VM is gone."""
        asked = sa.select(_kept.provider).where(_kept.holder_id == session_id)
        async with self._database.reading() as connection:
            return (await connection.execute(asked)).first() is not None

    async def brought_back(self, session: Session, plain: bytes) -> None:
        """Store the credentials read back from a session's VM, and release them.

        Does nothing where the session no longer holds them, since their owner stored or removed
        some. Raises NoCredentialsKey where the host no longer has a key.
        """
        if self._keys is None:
            raise no_key()
        sealed = self._keys.seal(plain, session.user_id, session.provider)
        async with self._database.writing() as connection:
            await locked_session(connection, session.id)
            at = self._clock()
            values = {**columns(sealed), "updated_at": at, "may_be_stale": False}
            if await release_credentials(connection, session.id, stale=False, **values):
                await log_session_event(connection, at, "read_back", session)

    async def not_injected(self, session_id: str) -> None:
        """Release credentials that a session's VM never had."""
        async with self._database.writing() as connection:
            await release_credentials(connection, session_id, stale=False)

"""Stored credentials of users. Only sealed (encrypted) credentials are written."""

from __future__ import annotations

import builtins
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.credential_encryption import Keyring, Sealed, sealed_to
from polydev.controller.entities import Session, now
from polydev.controller.store import session_errors, tables
from polydev.controller.store.credential_holders import (
    HOLDER,
    MAY_BE_STALE,
    in_use,
    no_key,
    none_stored,
    of_user,
)
from polydev.controller.store.credential_log import CONTROLLER, OPERATOR, EventActor, log_event
from polydev.controller.store.credential_receipts import receipt_values, receipt_words
from polydev.controller.store.row_mapping import Row
from polydev.controller.store.session_changes import (
    add_news,
    change_session,
    locked_session,
    write_session,
)
from polydev.controller.store.transactions import Database, uninterrupted
from polydev.controller.store.users import lock_user
from polydev.errors import CredentialsLocked, NotAllowed, WrongProvider

_kept = tables.credentials.c
METADATA = sa.select(
    _kept.provider,
    _kept.session_id,
    _kept.created_at,
    _kept.updated_at,
    _kept.recipient,
    HOLDER,
    MAY_BE_STALE,
)
ResealOutcome = Literal["sealed", "current", "locked", "recipients", "gone"]


@dataclass(frozen=True)
class StoredCredentials:
    """Stored credentials without their contents.

    session_id      the session in which they were obtained
    recipient       the age recipient that they are sealed to; None where the host can open them
    holder_id       the session whose VM has them, where only one place may have them
    may_be_stale    a VM that had them ended before they were read back, so their refresh token
                    may be used up
    """

    provider: str
    session_id: str | None
    created_at: datetime
    updated_at: datetime
    recipient: str | None = None
    holder_id: str | None = None
    may_be_stale: bool = False


@dataclass(frozen=True)
class ResealCounts:
    """Counts of credentials that were sealed again with the first key, or not.

    current     were sealed with the first key already
    locked      can be opened with no key of the host
    recipients  are sealed to a recipient of their owner
    """

    sealed: int
    current: int
    locked: int
    recipients: int = 0


@uninterrupted
class CredentialStore:
    """Credentials by user and provider. Without keys they can only be listed and removed."""

    def __init__(
        self, database: Database, keys: Keyring | None, clock: Callable[[], datetime] = now
    ) -> None:
        self._database = database
        self._keys = keys
        self._clock = clock

    async def store(
        self,
        user_id: str,
        provider: str,
        plain: bytes,
        session_id: str | None = None,
        actor: EventActor = CONTROLLER,
    ) -> tuple[StoredCredentials, bool]:
        """Store credentials, replacing earlier ones, and return them and whether they are new.

        A session that held the earlier ones no longer does. The session that they are from gets
        their receipt in the same transaction and, if it waits for its login, continues; where it
        has a recipient, they are sealed to that. Raises NoCredentialsKey and UserNotFound, and for
        the session SessionNotFound, NotAllowed, SessionExpired and WrongProvider.
        """
        async with self._database.writing() as connection:
            await lock_user(connection, user_id)
            session = None
            if session_id is not None:
                session = await locked_session(connection, session_id)
                _require_fit(session, user_id, provider)
            if session is not None and session.recipient is not None:
                sealed = sealed_to(session.recipient, plain)
            else:
                sealed = self._required_keys().seal(plain, user_id, provider)
            at = self._clock()
            written = await write_credentials(connection, user_id, provider, sealed, session_id, at)
            await log_event(
                connection, at, "stored", user_id, provider, actor=actor, session_id=session_id
            )
            if session is not None:
                await _give_receipt(connection, session, plain, at)
            return written

    async def list(self, user_id: str) -> builtins.list[StoredCredentials]:
        """Return a user's stored credentials without their contents, in the order of providers."""
        statement = METADATA.where(_kept.user_id == user_id).order_by(_kept.provider)
        async with self._database.reading() as connection:
            found = await connection.execute(statement)
            return [_stored_of(row) for row in found.mappings()]

    async def get(
        self, user_id: str, provider: str, actor: EventActor = CONTROLLER
    ) -> tuple[StoredCredentials, bytes]:
        """Return credentials with their contents: opened, or the age file of a recipient.

        Raises NoCredentialsKey, CredentialsNotFound, CredentialsLocked and CredentialsInUse.
        """
        statement = METADATA.add_columns(_kept.key_id, _kept.sealed)
        async with self._database.reading() as connection:
            found = await connection.execute(statement.where(*of_user(user_id, provider)))
            row = found.mappings().one_or_none()
        if row is None:
            self._required_keys()  # a host without a key says so first
            raise none_stored(provider)
        stored, sealed = _stored_of(row), sealed_of(row)
        if stored.holder_id is not None:
            raise in_use(provider, stored.holder_id)
        plain = sealed.data
        if sealed.recipient is None:
            plain = self._required_keys().open(sealed, user_id, provider)
        async with self._database.writing() as connection:
            await log_event(connection, self._clock(), "read", user_id, provider, actor=actor)
        return stored, plain

    async def remove(self, user_id: str, provider: str, actor: EventActor = CONTROLLER) -> None:
        """Remove a user's credentials of a provider. Raises CredentialsNotFound."""
        if not await self._remove(user_id, actor, _kept.provider == provider):
            raise none_stored(provider)

    async def remove_all(self, user_id: str, actor: EventActor = CONTROLLER) -> None:
        await self._remove(user_id, actor)

    async def _remove(
        self, user_id: str, actor: EventActor, *which: sa.ColumnElement[bool]
    ) -> builtins.list[str]:
        """Remove credentials of a user, and return their providers."""
        async with self._database.writing() as connection:
            return await delete_credentials(connection, self._clock(), user_id, actor, *which)

    async def seal_anew(self) -> ResealCounts:
        """Seal all credentials with the first key, one after the other.

        This can be interrupted and run again. Raises NoCredentialsKey.
        """
        keys = self._required_keys()
        async with self._database.reading() as connection:
            found = await connection.execute(sa.select(_kept.user_id, _kept.provider))
            all_of_them = found.all()
        outcomes = Counter([await self._reseal(keys, *row) for row in all_of_them])
        names: tuple[ResealOutcome, ...] = ("sealed", "current", "locked", "recipients")
        return ResealCounts(*(outcomes[name] for name in names))

    async def _reseal(self, keys: Keyring, user_id: str, provider: str) -> ResealOutcome:
        row_of_it = of_user(user_id, provider)
        columns_of_it = (_kept.key_id, _kept.sealed, _kept.recipient)
        statement = sa.select(*columns_of_it).where(*row_of_it).with_for_update()
        async with self._database.writing() as connection:
            row = (await connection.execute(statement)).mappings().one_or_none()
            if row is None:
                return "gone"
            sealed = sealed_of(row)
            if sealed.recipient is not None:
                return "recipients"
            try:
                plain = keys.open(sealed, user_id, provider)
            except CredentialsLocked:
                return "locked"
            if sealed.key_id == keys.first:
                return "current"
            fresh = columns(keys.seal(plain, user_id, provider))
            await connection.execute(
                sa.update(tables.credentials).where(*row_of_it).values(**fresh)
            )
            at = self._clock()
            await log_event(connection, at, "resealed", user_id, provider, actor=OPERATOR)
            return "sealed"

    def require_keys(self) -> None:
        """Raise NoCredentialsKey where this host has no key."""
        self._required_keys()

    def _required_keys(self) -> Keyring:
        if self._keys is None:
            raise no_key()
        return self._keys


def _require_fit(session: Session, user_id: str, provider: str) -> None:
    if session.user_id != user_id:
        raise NotAllowed("access denied: the session belongs to another user")
    if not session.is_live:
        raise session_errors.session_over(session)
    if session.provider != provider:
        raise WrongProvider(
            f"the session is for provider {session.provider}",
            "omit the session, or name another one",
        )


async def _give_receipt(
    connection: AsyncConnection, session: Session, plain: bytes, at: datetime
) -> None:
    """Give a session the receipt of credentials that its user stored by hand.

    Its VM's copy is left to the user. A session whose VM has shown no login yet gets no receipt,
    since that would end its login.
    """
    values = {**receipt_values(plain, at), "login_detail": None}
    if session.credentials_at is None:
        values["wiped_at"] = at
    if session.state == "oauth_pending":
        session = await change_session(connection, session, "oauth_done", at, values=values)
    elif session.state == "authenticated":
        session = await write_session(connection, session, **values)
    else:
        return
    await add_news(connection, session.id, at, "credentials", receipt_words(session))


async def write_credentials(
    connection: AsyncConnection,
    user_id: str,
    provider: str,
    sealed: Sealed,
    session_id: str | None,
    at: datetime,
) -> tuple[StoredCredentials, bool]:
    """Store a locked user's credentials, and return them and whether they are new."""
    row_of_it = of_user(user_id, provider)
    values = {**columns(sealed), "session_id": session_id, "updated_at": at}
    values |= {"holder_id": None, "may_be_stale": False}
    update = sa.update(tables.credentials).where(*row_of_it).values(values)
    is_new = (await connection.execute(update)).rowcount == 0
    if is_new:
        first = {"user_id": user_id, "provider": provider, "created_at": at}
        await connection.execute(sa.insert(tables.credentials).values({**first, **values}))
    found = await connection.execute(METADATA.where(*row_of_it))
    return _stored_of(found.mappings().one()), is_new


async def delete_credentials(
    connection: AsyncConnection,
    at: datetime,
    user_id: str,
    actor: EventActor,
    *which: sa.ColumnElement[bool],
) -> builtins.list[str]:
    """Delete credentials of a user, log that, and return their providers."""
    statement = sa.delete(tables.credentials).where(_kept.user_id == user_id, *which)
    found = await connection.execute(statement.returning(_kept.provider))
    removed = sorted(found.scalars())
    for provider in removed:
        await log_event(connection, at, "removed", user_id, provider, actor=actor)
    return removed


def columns(sealed: Sealed) -> dict[str, Any]:
    return {"key_id": sealed.key_id, "sealed": sealed.data, "recipient": sealed.recipient}


def sealed_of(row: Row) -> Sealed:
    return Sealed(row["key_id"], row["sealed"], row["recipient"])


def _stored_of(row: Row) -> StoredCredentials:
    return StoredCredentials(
        **{name: row[name] for name in (field.name for field in fields(StoredCredentials))}
    )

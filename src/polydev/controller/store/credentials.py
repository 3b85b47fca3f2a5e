"""Credentials of users, sealed: nothing else of them is ever written."""

from __future__ import annotations

import builtins
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.model import Session, now
from polydev.controller.sealing import Keyring, Sealed
from polydev.controller.store import refusals, tables
from polydev.controller.store.changes import change_session, locked_session
from polydev.controller.store.rows import Row
from polydev.controller.store.transactions import Database, uninterrupted
from polydev.controller.store.users import lock_user
from polydev.errors import (
    CredentialsLocked,
    CredentialsNotFound,
    NoCredentialsKey,
    NotAllowed,
    WrongProvider,
)

_kept = tables.credentials.c
METADATA = sa.select(_kept.provider, _kept.session_id, _kept.created_at, _kept.updated_at)
Outcome = Literal["sealed", "current", "locked", "gone"]


@dataclass(frozen=True)
class Stored:
    """What may be told of stored credentials. `session_id`: in which session they were got."""

    provider: str
    session_id: str | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class Resealed:
    """How many are sealed anew, by the first key as before, and opened by no key."""

    sealed: int
    current: int
    locked: int


@uninterrupted
class Credentials:
    """Each user's, one of each provider. Without keys they can be listed and removed only."""

    def __init__(
        self, database: Database, keys: Keyring | None, clock: Callable[[], datetime] = now
    ) -> None:
        self._database = database
        self._keys = keys
        self._clock = clock

    async def store(
        self, user_id: str, provider: str, plain: bytes, session_id: str | None = None
    ) -> tuple[Stored, bool]:
        """Keep or replace credentials, and whether they are new.

        A session that waits for them goes on in the same transaction. Raises NoCredentialsKey,
        UserNotFound; SessionNotFound, NotAllowed (another's), SessionExpired and WrongProvider.
        """
        sealed = self._required_keys().seal(plain, user_id, provider)
        async with self._database.writing() as connection:
            await lock_user(connection, user_id)
            session = None
            if session_id is not None:
                session = await locked_session(connection, session_id)
                _require_fit(session, user_id, provider)
            at = self._clock()
            stored, is_new = await _write(connection, user_id, provider, sealed, session_id, at)
            if session is not None and session.state == "oauth_pending":
                await change_session(connection, session, "oauth_done", at)
            return stored, is_new

    async def list(self, user_id: str) -> builtins.list[Stored]:
        """By provider."""
        statement = METADATA.where(_kept.user_id == user_id).order_by(_kept.provider)
        async with self._database.reading() as connection:
            found = await connection.execute(statement)
            return [_stored_of(row) for row in found.mappings()]

    async def get(self, user_id: str, provider: str) -> tuple[Stored, bytes]:
        """Credentials, opened. Raises NoCredentialsKey, CredentialsNotFound, CredentialsLocked."""
        keys = self._required_keys()
        statement = METADATA.add_columns(_kept.key_id, _kept.sealed)
        async with self._database.reading() as connection:
            found = await connection.execute(statement.where(*_is(user_id, provider)))
            row = found.mappings().one_or_none()
        if row is None:
            raise _none(provider)
        return _stored_of(row), keys.open(_sealed_of(row), user_id, provider)

    async def remove(self, user_id: str, provider: str) -> None:
        """Raises CredentialsNotFound."""
        statement = sa.delete(tables.credentials).where(*_is(user_id, provider))
        async with self._database.writing() as connection:
            if (await connection.execute(statement)).rowcount == 0:
                raise _none(provider)

    async def remove_all(self, user_id: str) -> None:
        async with self._database.writing() as connection:
            await connection.execute(sa.delete(tables.credentials).where(_kept.user_id == user_id))

    async def seal_anew(self) -> Resealed:
        """Seal with the first key what another one seals, one after the other.

        It may be interrupted and begun again. Raises NoCredentialsKey.
        """
        keys = self._required_keys()
        async with self._database.reading() as connection:
            found = await connection.execute(sa.select(_kept.user_id, _kept.provider))
            all_of_them = found.all()
        outcomes = Counter([await self._reseal(keys, *row) for row in all_of_them])
        return Resealed(outcomes["sealed"], outcomes["current"], outcomes["locked"])

    async def _reseal(self, keys: Keyring, user_id: str, provider: str) -> Outcome:
        row_of_it = _is(user_id, provider)
        statement = sa.select(_kept.key_id, _kept.sealed).where(*row_of_it).with_for_update()
        async with self._database.writing() as connection:
            row = (await connection.execute(statement)).mappings().one_or_none()
            if row is None:
                return "gone"
            sealed = _sealed_of(row)
            try:
                plain = keys.open(sealed, user_id, provider)
            except CredentialsLocked:
                return "locked"
            if sealed.key_id == keys.first:
                return "current"
            fresh = _columns(keys.seal(plain, user_id, provider))
            await connection.execute(
                sa.update(tables.credentials).where(*row_of_it).values(**fresh)
            )
            return "sealed"

    def _required_keys(self) -> Keyring:
        if self._keys is None:
            raise NoCredentialsKey(
                "this host keeps no credentials: it has no key to seal them with",
                "an operator makes one with ./inv credentials.key, names its file credentials-key "
                "among the inventory's secrets, and deploys",
            )
        return self._keys


def _require_fit(session: Session, user_id: str, provider: str) -> None:
    if session.user_id != user_id:
        raise NotAllowed("the session is another user's")
    if not session.is_live:
        raise refusals.session_over(session)
    if session.provider != provider:
        raise WrongProvider(
            f"the session's provider is {session.provider}", "leave the session out, or correct it"
        )


async def _write(
    connection: AsyncConnection,
    user_id: str,
    provider: str,
    sealed: Sealed,
    session_id: str | None,
    at: datetime,
) -> tuple[Stored, bool]:
    row_of_it = _is(user_id, provider)
    values = {**_columns(sealed), "session_id": session_id, "updated_at": at}
    update = sa.update(tables.credentials).where(*row_of_it).values(values)
    is_new = (await connection.execute(update)).rowcount == 0
    if is_new:
        first = {"user_id": user_id, "provider": provider, "created_at": at}
        await connection.execute(sa.insert(tables.credentials).values({**first, **values}))
    found = await connection.execute(METADATA.where(*row_of_it))
    return _stored_of(found.mappings().one()), is_new


def _is(user_id: str, provider: str) -> tuple[sa.ColumnElement[bool], ...]:
    return _kept.user_id == user_id, _kept.provider == provider


def _columns(sealed: Sealed) -> dict[str, object]:
    return {"key_id": sealed.key_id, "sealed": sealed.data}


def _sealed_of(row: Row) -> Sealed:
    return Sealed(row["key_id"], row["sealed"])


def _stored_of(row: Row) -> Stored:
    return Stored(row["provider"], row["session_id"], row["created_at"], row["updated_at"])


def _none(provider: str) -> CredentialsNotFound:
    return CredentialsNotFound(f"you have no stored credentials of {provider}")

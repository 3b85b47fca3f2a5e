"""Sign-ins of browsers, and tickets for one use. Secrets are stored as hashes only.

A sign-in ends with the token that it was made with, and a ticket with its sign-in or token: the
queries and foreign keys see to that.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.entities import Caller, now
from polydev.controller.store import tables
from polydev.controller.store.transactions import Database, uninterrupted
from polydev.controller.store.users import USED_EVERY, token_hash

KEY_PREFIX = "pdk_"
"""Prefix of page keys, which tells them from tokens and JWTs."""
MOST_PER_USER = 1000
"""Limit for a user's sign-ins, and for their tickets: another one replaces the oldest."""
Purpose = Literal["viewer", "page", "sign-in"]
_sign_ins, _tickets = tables.sign_ins.c, tables.tickets.c
_tokens, _users = tables.tokens.c, tables.users.c


@uninterrupted
class SignIns:
    """Cookies of browsers, whose `session_id` is None, and keys of pages, which have one."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = now) -> None:
        self._database = database
        self._clock = clock

    async def create(self, caller: Caller, seconds: float) -> tuple[str, datetime]:
        """Create a sign-in for the caller, and return its secret and its end.

        It ends with the caller's own credential at the latest. Expired sign-ins are deleted.
        """
        at = self._clock()
        ends = at + timedelta(seconds=seconds)
        expires_at = min(ends, caller.expires_at) if caller.expires_at else ends
        plain = (KEY_PREFIX if caller.session_id else "") + secrets.token_urlsafe(32)
        values = {
            "id": str(uuid.uuid4()),
            "sha256": token_hash(plain),
            "user_id": caller.user_id,
            "token_id": caller.token_id,
            "session_id": caller.session_id,
            "parent_id": caller.sign_in_id,
            "view_only": caller.view_only,
            "created_at": at,
            "expires_at": expires_at,
        }
        async with self._database.writing() as connection:
            await connection.execute(sa.delete(tables.sign_ins).where(_sign_ins.expires_at <= at))
            await connection.execute(sa.insert(tables.sign_ins).values(values))
            newest = _sign_ins.created_at.desc()
            await _keep_most(connection, tables.sign_ins, _sign_ins.id, newest, caller.user_id)
        return plain, expires_at

    async def caller_of(self, plain: str) -> Caller | None:
        """Return the caller that a cookie or key stands for; None if it is unknown or expired."""
        at = self._clock()
        statement = (
            sa.select(tables.sign_ins, _users.role)
            .join(tables.users, _users.id == _sign_ins.user_id)
            .outerjoin(tables.tokens, _tokens.id == _sign_ins.token_id)
            .where(_sign_ins.sha256 == token_hash(plain), _sign_ins.expires_at > at, _usable(at))
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(statement)).one_or_none()
        if row is None or bool(row.session_id) != plain.startswith(KEY_PREFIX):
            return None
        if row.used_at is None or row.used_at <= at - USED_EVERY:
            await self._note_use(row.id, at)
        return Caller(
            row.user_id,
            row.role,
            "key" if row.session_id else "cookie",
            row.expires_at,
            row.token_id,
            row.id,
            row.session_id,
            row.view_only,
        )

    async def end(self, sign_in_id: str) -> None:
        """Sign out, and end the page keys that were made with this sign-in."""
        theirs = sa.or_(_sign_ins.id == sign_in_id, _sign_ins.parent_id == sign_in_id)
        async with self._database.writing() as connection:
            await connection.execute(sa.delete(tables.sign_ins).where(theirs))

    async def standing(self, ids: Collection[str]) -> set[str]:
        """Return which of these sign-ins still exist."""
        statement = sa.select(_sign_ins.id).where(_sign_ins.id.in_(ids))
        async with self._database.reading() as connection:
            return set((await connection.execute(statement)).scalars())

    async def _note_use(self, sign_in_id: str, at: datetime) -> None:
        statement = sa.update(tables.sign_ins).where(_sign_ins.id == sign_in_id)
        async with self._database.writing() as connection:
            await connection.execute(statement.values(used_at=at))


@uninterrupted
class Tickets:
    """Tickets for one use: of a viewer for a screen, a page for its session, or a browser."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = now) -> None:
        self._database = database
        self._clock = clock

    async def create(
        self,
        purpose: Purpose,
        caller: Caller,
        seconds: float,
        session_id: str | None = None,
        *,
        view_only: bool = False,
    ) -> tuple[str, datetime]:
        """Create a ticket for the caller, and return its secret and its expiry.

        Expired tickets are deleted.
        """
        at, plain = self._clock(), secrets.token_urlsafe(32)
        values: dict[str, Any] = {
            "sha256": token_hash(plain),
            "purpose": purpose,
            "user_id": caller.user_id,
            "token_id": caller.token_id,
            "sign_in_id": caller.sign_in_id,
            "session_id": session_id,
            "view_only": view_only or caller.view_only,
            "expires_at": at + timedelta(seconds=seconds),
            "caller_until": caller.expires_at,
        }
        async with self._database.writing() as connection:
            await connection.execute(sa.delete(tables.tickets).where(_tickets.expires_at <= at))
            await connection.execute(sa.insert(tables.tickets).values(values))
            newest = _tickets.expires_at.desc()
            await _keep_most(connection, tables.tickets, _tickets.sha256, newest, caller.user_id)
        return plain, values["expires_at"]

    async def redeem(self, plain: str, purpose: Purpose) -> Caller | None:
        """Use a ticket and return its caller; None if it is not valid for this purpose."""
        at = self._clock()
        taken = (
            sa.delete(tables.tickets)
            .where(_tickets.sha256 == token_hash(plain), _tickets.purpose == purpose)
            .where(_tickets.expires_at > at)
            .returning(tables.tickets)
        )
        async with self._database.writing() as connection:
            row = (await connection.execute(taken)).one_or_none()
            if row is None:
                return None
            role = (await connection.execute(_role_of_maker(row, at))).scalar_one_or_none()
        if role is None or (row.caller_until is not None and row.caller_until <= at):
            return None
        return Caller(
            row.user_id,
            role,
            "ticket",
            row.caller_until,
            row.token_id,
            row.sign_in_id,
            row.session_id,
            row.view_only,
        )


async def _keep_most(
    connection: AsyncConnection,
    table: sa.Table,
    key: sa.Column[Any],
    newest: sa.ColumnElement[Any],
    user_id: str,
) -> None:
    """Delete all rows of a user except the newest MOST_PER_USER."""
    excess = sa.select(key).where(table.c.user_id == user_id).order_by(newest).offset(MOST_PER_USER)
    found = list((await connection.execute(excess)).scalars())
    if found:
        await connection.execute(sa.delete(table).where(key.in_(found)))


def _role_of_maker(ticket: sa.Row[Any], at: datetime) -> sa.Select[Any]:
    """Select the role of a ticket's user; no row if the ticket's token is no longer valid."""
    return (
        sa.select(_users.role)
        .outerjoin(tables.tokens, _tokens.id == ticket.token_id)
        .where(_users.id == ticket.user_id, _usable(at))
    )


def _usable(at: datetime) -> sa.ColumnElement[bool]:
    """Return the condition that the token behind a sign-in or ticket, if any, is still valid."""
    not_expired = sa.or_(_tokens.expires_at.is_(None), _tokens.expires_at > at)
    return sa.and_(_tokens.revoked_at.is_(None), not_expired)

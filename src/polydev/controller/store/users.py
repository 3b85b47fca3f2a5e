"""Users and their tokens. A token is stored as its hash only."""

from __future__ import annotations

import builtins
import hashlib
import secrets
import uuid
from collections.abc import Callable, Collection
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.entities import SEE_ALL, Caller, Role, Token, User, now
from polydev.controller.store import tables
from polydev.controller.store.row_mapping import TOKENS, USERS, token_of, user_of
from polydev.controller.store.transactions import Database, uninterrupted
from polydev.errors import SessionError, UserNotFound

TOKEN_PREFIX = "pdt_"  # noqa: S105 - by this a token is told from a JWT
SHORTEST_PREFIX = 4
MOST_NAMED = 5
USED_EVERY = timedelta(minutes=1)


class TokenNotFound(SessionError):
    code = "token-not-found"


@uninterrupted
class Users:
    def __init__(self, database: Database, clock: Callable[[], datetime] = now) -> None:
        self._database = database
        self._clock = clock

    async def add(self, role: Role, name: str | None = None, user_id: str | None = None) -> User:
        """Add a user, with a new id if none is given. Raises SessionError if the user exists."""
        user = User(user_id or str(uuid.uuid4()), role, name, self._clock())
        values = {"id": user.id, "role": role, "name": name, "created_at": user.created_at}
        try:
            async with self._database.writing() as connection:
                await connection.execute(sa.insert(tables.users).values(values))
        except IntegrityError as error:
            if await self.find(user.id) is None:
                raise
            raise SessionError(f"the user {user.id} already exists") from error
        return user

    async def find(self, user_id: str) -> User | None:
        async with self._database.reading() as connection:
            found = await connection.execute(USERS.where(tables.users.c.id == user_id))
            row = found.mappings().one_or_none()
        return user_of(row) if row else None

    async def get(self, user_id: str) -> User:
        """Return a user. Raises UserNotFound."""
        user = await self.find(user_id)
        if user is None:
            raise no_user(user_id)
        return user

    async def list(self) -> builtins.list[User]:
        """Return all users, in the order in which they were added."""
        users = tables.users.c
        async with self._database.reading() as connection:
            found = await connection.execute(USERS.order_by(users.created_at, users.id))
            return [user_of(row) for row in found.mappings()]

    async def named(self, who: str) -> User:
        """Return the user with that id, beginning of an id, or name.

        Raises UserNotFound for none and SessionError for several.
        """
        users = await self.list()
        if exact := [user for user in users if user.id == who.lower()]:
            return exact[0]
        found = [user for user in users if user.name == who or is_prefix(who, user.id)]
        if not found:
            raise UserNotFound(f"there is no user {who!r}", "./inv user.list lists all of them")
        if len(found) > 1:
            some = ", ".join(f"{user.id} ({user.name or 'no name'})" for user in found[:MOST_NAMED])
            raise SessionError(
                f"{who!r} matches {len(found)} users: {some}", "name one of them by id"
            )
        return found[0]

    async def rename(self, user_id: str, name: str) -> User:
        """Change a user's name. Raises UserNotFound."""
        statement = sa.update(tables.users).where(tables.users.c.id == user_id).values(name=name)
        async with self._database.writing() as connection:
            await connection.execute(statement)
        return await self.get(user_id)

    async def who_see_all(self, ids: Collection[str]) -> set[str]:
        """Return which of these users may see resources of other users."""
        users = tables.users.c
        statement = sa.select(users.id).where(users.id.in_(ids), users.role.in_(SEE_ALL))
        async with self._database.reading() as connection:
            return set((await connection.execute(statement)).scalars())

    async def last_seen(self, user_id: str | None = None) -> dict[str, datetime]:
        """Return when each user, or one, last used a token, browser or session; by id."""
        tokens, sign_ins, sessions = (
            each.c for each in (tables.tokens, tables.sign_ins, tables.sessions)
        )
        times = sa.union_all(
            sa.select(tokens.user_id, sa.func.max(tokens.used_at).label("at")).group_by(
                tokens.user_id
            ),
            sa.select(sign_ins.user_id, sa.func.max(sign_ins.used_at)).group_by(sign_ins.user_id),
            sa.select(
                sessions.user_id,
                sa.func.max(sa.func.coalesce(sessions.heartbeat_at, sessions.created_at)),
            ).group_by(sessions.user_id),
        ).subquery()
        statement = sa.select(times).where(times.c.at.is_not(None))
        if user_id is not None:
            statement = statement.where(times.c.user_id == user_id)
        found: dict[str, datetime] = {}
        async with self._database.reading() as connection:
            for row in await connection.execute(statement):
                found[row.user_id] = max(row.at, found.get(row.user_id, row.at))
        return found

    async def some(self, ids: Collection[str]) -> dict[str, User]:
        """Return those of these users that exist, by id."""
        async with self._database.reading() as connection:
            found = await connection.execute(USERS.where(tables.users.c.id.in_(ids)))
            return {row["id"]: user_of(row) for row in found.mappings()}

    async def set_role(self, user_id: str, role: Role) -> User:
        """Change a user's role. Raises UserNotFound."""
        statement = sa.update(tables.users).where(tables.users.c.id == user_id).values(role=role)
        async with self._database.writing() as connection:
            await connection.execute(statement)
        return await self.get(user_id)


@uninterrupted
class Tokens:
    def __init__(self, database: Database, clock: Callable[[], datetime] = now) -> None:
        self._database = database
        self._clock = clock

    async def create(
        self, user_id: str, name: str, expires_at: datetime | None = None
    ) -> tuple[Token, str]:
        """Create a token; return its description and its secret. Raises UserNotFound."""
        plain = TOKEN_PREFIX + secrets.token_urlsafe(32)
        values = {
            "id": str(uuid.uuid4()),
            "user_id": user_id,
            "name": name,
            "sha256": token_hash(plain),
            "created_at": self._clock(),
            "expires_at": expires_at,
        }
        async with self._database.writing() as connection:
            known = await connection.execute(
                sa.select(tables.users.c.id).where(tables.users.c.id == user_id)
            )
            if known.scalar_one_or_none() is None:
                raise no_user(user_id)
            await connection.execute(sa.insert(tables.tokens).values(values))
            found = await connection.execute(TOKENS.where(tables.tokens.c.id == values["id"]))
            return token_of(found.mappings().one()), plain

    async def revoke(self, token_id: str) -> Token:
        """Revoke a token; one that is revoked stays as it is. Raises TokenNotFound."""
        tokens = tables.tokens.c
        statement = sa.update(tables.tokens).where(
            tokens.id == token_id, tokens.revoked_at.is_(None)
        )
        async with self._database.writing() as connection:
            await connection.execute(statement.values(revoked_at=self._clock()))
            found = await connection.execute(TOKENS.where(tokens.id == token_id))
            row = found.mappings().one_or_none()
        if row is None:
            raise TokenNotFound(f"there is no token {token_id}", "list the tokens to see their ids")
        return token_of(row)

    async def list(self, user_id: str | None = None) -> builtins.list[Token]:
        """Return the tokens of one user or of all, oldest first."""
        tokens = tables.tokens.c
        statement = TOKENS.order_by(tokens.created_at, tokens.id)
        if user_id is not None:
            statement = statement.where(tokens.user_id == user_id)
        async with self._database.reading() as connection:
            found = await connection.execute(statement)
            return [token_of(row) for row in found.mappings()]

    async def caller_of(self, plain: str) -> Caller | None:
        """Return the caller that a token stands for; None if it is unknown, revoked or expired."""
        at, tokens, hashed = self._clock(), tables.tokens.c, token_hash(plain)
        statement = TOKENS.add_columns(tables.users.c.role).join(
            tables.users, tokens.user_id == tables.users.c.id
        )
        usable = sa.and_(
            tokens.sha256 == hashed,
            tokens.revoked_at.is_(None),
            sa.or_(tokens.expires_at.is_(None), tokens.expires_at > at),
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(statement.where(usable))).one_or_none()
        if row is None:
            return None
        if row.used_at is None or row.used_at <= at - USED_EVERY:
            await self._note_use(hashed, at)
        return Caller(row.user_id, row.role, "token", row.expires_at, row.id)

    async def not_revoked(self, ids: Collection[str]) -> set[str]:
        """Return which of these tokens exist and are not revoked."""
        tokens = tables.tokens.c
        statement = sa.select(tokens.id).where(tokens.id.in_(ids), tokens.revoked_at.is_(None))
        async with self._database.reading() as connection:
            return set((await connection.execute(statement)).scalars())

    async def _note_use(self, hashed: str, at: datetime) -> None:
        statement = sa.update(tables.tokens).where(tables.tokens.c.sha256 == hashed)
        async with self._database.writing() as connection:
            await connection.execute(statement.values(used_at=at))


def is_prefix(text: str, user_id: str) -> bool:
    return len(text) >= SHORTEST_PREFIX and user_id.startswith(text.lower())


def token_hash(plain: str) -> str:
    return hashlib.sha256(plain.encode()).hexdigest()


async def lock_user(connection: AsyncConnection, user_id: str) -> None:
    """Lock a user, so that one transaction at a time checks and changes what belongs to them.

    Raises UserNotFound.
    """
    user = tables.users.c.id
    found = await connection.execute(
        sa.select(user).where(user == user_id).with_for_update(key_share=True)
    )
    if found.scalar_one_or_none() is None:
        raise no_user(user_id)


def no_user(user_id: str) -> UserNotFound:
    return UserNotFound(
        f"there is no user {user_id}", "an administrator adds users with ./inv user.add"
    )

"""Connections to the database, and the revision of its schema."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from sqlalchemy import event, text
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import ArgumentError, OperationalError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from polydev.errors import Error
from polydev.validation import HIGHEST_PORT

# How long a writer waits for others. SQLite has no queue of them: each tries again now and then,
# and among many writers on a busy host one may come too late for a while.
BUSY_TIMEOUT_MS = 5000
SQLITE_BUSY_TIMEOUT_MS = 20_000
SSL_MODES = ("prefer", "disable", "allow", "require", "verify-ca", "verify-full")
CONNECT_TIMEOUT_SECONDS = 10
# The name of our connections in PostgreSQL's pg_stat_activity.
APPLICATION_NAME = "polydev-controller"
# With WAL, readers and backups do not wait for the writer. NORMAL is durable enough: a power
# failure may lose the last commits, but damages nothing.
SQLITE_PRAGMAS = (
    f"PRAGMA busy_timeout={SQLITE_BUSY_TIMEOUT_MS}",
    "PRAGMA synchronous=NORMAL",
    "PRAGMA foreign_keys=ON",
)


DRIVERS = {
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgresql+psycopg": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
}


class DatabaseUnusable(Error):
    """The database cannot be reached, or has another schema than this release."""

    code = "database"


def checked_url(url: str) -> str:
    """Return the URL with the driver that we use. Raises ValueError, which does not quote it."""
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in DRIVERS:
        raise ValueError("must begin with postgresql+psycopg:// or sqlite+aiosqlite://")
    if re.search(r"\s", url):
        raise ValueError("contains a blank or a line break: write a blank as %20")
    try:
        parts = make_url(url)
        is_readable = parts.port is None or 1 <= parts.port <= HIGHEST_PORT
    except (ArgumentError, ValueError):
        is_readable = False
    if not is_readable:
        raise ValueError("has an invalid host or port")
    if "\0" in unquote(url):
        raise ValueError("contains %00: no database takes it")
    if "@" in (parts.host or ""):
        raise ValueError("has an @ in its password: write it as %40")
    if parts.get_backend_name() == "sqlite":
        if parts.database in (None, "", ":memory:"):
            raise ValueError("names no file, as in sqlite+aiosqlite:////var/lib/x.sqlite3")
    else:
        _check_parameters(parts.query)
    return f"{DRIVERS[scheme]}://{rest}"


def _check_parameters(query: Mapping[str, str | tuple[str, ...]]) -> None:
    """Raise ValueError for parameters that libpq would refuse at the first connection."""
    if not query:
        return
    from psycopg import ProgrammingError as UnknownParameter  # expensive, and seldom needed
    from psycopg.conninfo import make_conninfo

    try:
        make_conninfo("", **{name: str(value) for name, value in query.items()})
    except UnknownParameter as error:  # it names the parameter, and not its value
        raise ValueError(f"has a parameter that PostgreSQL does not know: {error}") from None
    mode = query.get("sslmode", SSL_MODES[0])
    if mode not in SSL_MODES:
        raise ValueError(f"sslmode must be one of {', '.join(SSL_MODES)}")
    seconds = query.get("connect_timeout", "0")
    if not (isinstance(seconds, str) and re.fullmatch(r"[0-9]+", seconds)):
        raise ValueError("connect_timeout must be a whole number")


def described(url: str) -> str:
    """Describe the database without its password: `PostgreSQL, NAME at HOST:PORT as USER`."""
    parts = make_url(url)
    if parts.get_backend_name() == "sqlite":
        return f"SQLite in {parts.database}"
    host = parts.host or parts.query.get("host") or "this machine"
    port, user = parts.port or parts.query.get("port"), parts.username or parts.query.get("user")
    where = f"{host}:{port}" if port else f"{host}"
    name = parts.database or "its default database"
    return f"PostgreSQL, {name} at {where}" + (f" as {user}" if user else "")


def create_engine(
    url: str,
    *,
    begin: Literal["BEGIN", "BEGIN IMMEDIATE"] = "BEGIN",
    busy_timeout_ms: int | None = None,
) -> AsyncEngine:
    """Make an engine, without a connection yet.

    `begin` is how SQLite begins a transaction, `busy_timeout_ms` how long it waits for a writer, if
    not as long as all others do.
    """
    if make_url(url).get_backend_name() == "sqlite":
        engine = create_async_engine(url)
        more = () if busy_timeout_ms is None else (f"PRAGMA busy_timeout={busy_timeout_ms}",)
        _set_up_sqlite(engine, begin, more)
        return engine
    # A pooler such as Supabase's would lose prepared statements.
    arguments = {
        "prepare_threshold": None,
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "application_name": APPLICATION_NAME,
    }
    return create_async_engine(url, pool_pre_ping=True, connect_args=arguments)


def make_wal(url: str) -> None:
    """Set the journal mode of a SQLite database, which its file keeps; create it if missing.

    SQLite waits for no lock when the mode changes, so of two at once the second would fail: they
    queue on the folder. Other databases are left alone. Raises OSError, sqlite3.Error.
    """
    parts = make_url(url)
    if parts.get_backend_name() != "sqlite" or not parts.database:
        return
    path = Path(parts.database)
    queue = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(queue, fcntl.LOCK_EX)
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
    finally:
        os.close(queue)


def _set_up_sqlite(engine: AsyncEngine, begin: str, more: Sequence[str]) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _record: object) -> None:
        # The driver's own transactions start late and leave DDL out; ours start with BEGIN.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (*SQLITE_PRAGMAS, *more):
            cursor.execute(pragma)
        # Check first: setting the mode, even to the same, fails while another process has a lock.
        cursor.execute("PRAGMA journal_mode")
        if tuple(cursor.fetchone()) != ("wal",):
            cursor.execute("PRAGMA journal_mode=WAL")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begun(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("begin", begin))


async def schema_revision(engine: AsyncEngine) -> str | None:
    """Return the database's revision; None if it was never migrated.

    Raises SQLAlchemyError or OSError when the database cannot be reached.
    """
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
        try:
            found = await connection.execute(text("SELECT version_num FROM alembic_version"))
        except (OperationalError, ProgrammingError):  # no such table
            return None
        return found.scalar_one_or_none()

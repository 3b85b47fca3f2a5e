"""Can this release use the database? Asked before anything depends on it; nothing is changed."""

from __future__ import annotations

import asyncio
import os
import re

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.database import DatabaseUnusable, create_engine, described, schema_revision
from polydev.controller.migrate import known_revisions
from polydev.controller.migrations import HEAD
from polydev.controller.store import tables
from polydev.controller.store.postgres_backup import CLIENT_HINT, tool_version
from polydev.controller.store.schema_check import differences, lines_of

CONNECT_SECONDS = 30
OLDEST_SERVER = 12
TOOLS = ("pg_dump", "pg_restore", "psql")
# What the server or libpq says, and what to do about it.
HINTS = (
    ("password authentication failed", "correct user and password in the address"),
    ("no password supplied", "add the password to the address: USER:PASSWORD@HOST"),
    ("SSL connection is required", "the server wants TLS: add ?sslmode=require to the address"),
    ("does not support SSL", "the server has no TLS: leave sslmode out of the address"),
    (
        "no pg_hba.conf entry",
        "let the server take connections from this host (pg_hba.conf); "
        "if it wants TLS, add ?sslmode=require to the address",
    ),
    ("certificate verify failed", "name the server's authority: ?sslrootcert=FILE"),
    ("resolve host", "correct the name of the host in the address"),
    ("database .* does not exist", "make the database, or correct its name in the address"),
    ("refused|timeout|timed out|unreachable", "see that the server runs and can be reached"),
)


async def check_database(url: str, *, with_tools: bool) -> dict[str, object]:
    """Describe the database. Raises DatabaseUnusable with what to do; never with a password."""
    parts = sa.make_url(url)
    found: dict[str, object] = {"database": described(url), "expected": HEAD, "occupied": []}
    is_postgresql = parts.get_backend_name() == "postgresql"
    if not is_postgresql and not os.path.isfile(parts.database or ""):  # noqa: ASYNC240, PTH113
        return {**found, "revision": None, "differences": []}  # SQLite would make an empty one
    engine, server = create_engine(url), OLDEST_SERVER
    try:
        revision = await asyncio.wait_for(schema_revision(engine), CONNECT_SECONDS)
        async with engine.connect() as connection:
            if is_postgresql:
                server = await _server_version(connection)
                await _require_rights(connection, revision)
                found["occupied"] = await _occupied(connection) if revision else []
            found["revision"] = revision
            found["differences"] = await connection.run_sync(_differences, revision)
    except asyncio.TimeoutError:
        raise _unusable(url, f"timeout: no answer within {CONNECT_SECONDS} s") from None
    except (SQLAlchemyError, OSError) as error:
        # Only the driver's own words: SQLAlchemy's would quote the statement.
        raise _unusable(url, str(getattr(error, "orig", None) or error)) from error
    finally:
        await engine.dispose()
    if revision is not None and revision not in known_revisions():
        raise DatabaseUnusable(
            f"{described(url)}: it is at revision {revision}, which this release does not know",
            "deploy the release that knows it, or go back to a copy: ./inv rollback; "
            f"if only the number was changed by hand, set version_num to {HEAD} in alembic_version",
        )
    if server < OLDEST_SERVER:
        raise DatabaseUnusable(
            f"{described(url)}: the server is PostgreSQL {server}, {OLDEST_SERVER} is needed",
            "use a newer server",
        )
    if with_tools and is_postgresql:
        await asyncio.to_thread(_require_tools, server)
    return found


def _differences(connection: sa.Connection, revision: str | None) -> list[str]:
    """Lines of what is not as this release's migrations make it; none before the first one."""
    if revision in (None, HEAD):
        return lines_of(differences(connection)) if revision else []
    return [f"- revision {revision}", f"+ revision {HEAD}"]


async def _occupied(connection: AsyncConnection) -> list[str]:
    """Those of our tables that have rows; an older schema may lack some of them."""
    names = [table.name for table in tables.metadata.sorted_tables]
    there = (
        "SELECT name FROM unnest(CAST(:names AS text[])) name WHERE to_regclass(name) IS NOT NULL"
    )
    found = (await connection.execute(sa.text(there), {"names": names})).scalars().all()
    some = [sa.select(sa.literal(1)).select_from(sa.table(name)) for name in found]
    has_rows = await connection.execute(sa.select(*(sa.exists(each) for each in some)))
    return [name for name, has in zip(found, has_rows.one(), strict=True) if has]


async def _server_version(connection: AsyncConnection) -> int:
    found = await connection.execute(sa.text("SHOW server_version_num"))
    return int(found.scalar_one()) // 10000


async def _require_rights(connection: AsyncConnection, revision: str | None) -> None:
    """Raises DatabaseUnusable where the role may not make tables, or tables are in the way."""
    row = (
        await connection.execute(
            sa.text(
                "SELECT current_schema() AS schema, current_user AS role,"
                " has_schema_privilege(current_schema(), 'CREATE') AS may_create,"
                " to_regclass('users') IS NOT NULL AS taken"
            )
        )
    ).one()
    if row.schema is None:
        raise DatabaseUnusable(
            "the database has no schema on the search path", "make it: CREATE SCHEMA NAME"
        )
    if not row.may_create:
        raise DatabaseUnusable(
            f"role {row.role} may not make tables in schema {row.schema}",
            f"as its owner: GRANT CREATE ON SCHEMA {row.schema} TO {row.role}",
        )
    if revision is None and row.taken:
        raise DatabaseUnusable(
            "the database has a table `users` that is not the controller's",
            "name another database, or a schema of its own: ?options=-csearch_path%3DNAME",
        )


def _require_tools(server: int) -> None:
    for tool in TOOLS:
        version = tool_version(tool)
        if version < server:
            raise DatabaseUnusable(
                f"{tool} on the host is of version {version}, the server of {server}: "
                "no backup could be made",
                CLIENT_HINT,
            )


def _unusable(url: str, said: str) -> DatabaseUnusable:
    words = " ".join(said.split())
    hint = next((todo for mark, todo in HINTS if re.search(mark, words)), None)
    return DatabaseUnusable(f"{described(url)}: {words}", hint)

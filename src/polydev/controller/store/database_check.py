"""Check that this release can use the database, without changing it."""

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
from polydev.vm.cancel_on_timeout import limited

CONNECT_SECONDS = 30
OLDEST_SERVER = 12
TOOLS = ("pg_dump", "pg_restore", "psql")
# Messages of the server or libpq, and what to do about each.
HINTS = (
    ("password authentication failed", "correct the user and password in the address"),
    ("no password supplied", "add the password to the address: USER:PASSWORD@HOST"),
    ("SSL connection is required", "the server requires TLS: add ?sslmode=require to the address"),
    ("does not support SSL", "the server does not support TLS: remove sslmode from the address"),
    (
        "no pg_hba.conf entry",
        "allow connections from this host in the server's pg_hba.conf; "
        "if it requires TLS, add ?sslmode=require to the address",
    ),
    (
        "certificate verify failed",
        "add the server's certificate authority to the address: ?sslrootcert=FILE",
    ),
    ("resolve host", "correct the host name in the address"),
    ("database .* does not exist", "create the database, or correct its name in the address"),
    (
        "refused|timeout|timed out|unreachable",
        "check that the server runs and can be reached from this host",
    ),
)


async def check_database(url: str, *, with_tools: bool) -> dict[str, object]:
    """Return a description. Raises DatabaseUnusable with what to do, and never with a password."""
    parts = sa.make_url(url)
    found: dict[str, object] = {"database": described(url), "expected": HEAD, "occupied": []}
    is_postgresql = parts.get_backend_name() == "postgresql"
    if not is_postgresql and not os.path.isfile(parts.database or ""):  # noqa: ASYNC240, PTH113
        return {**found, "revision": None, "differences": []}  # SQLite would make an empty one
    engine, server = create_engine(url), OLDEST_SERVER
    try:
        revision = await limited(CONNECT_SECONDS, schema_revision(engine))
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
        # Only the driver's message: SQLAlchemy's would quote the statement.
        raise _unusable(url, str(getattr(error, "orig", None) or error)) from error
    finally:
        await engine.dispose()
    if revision is not None and revision not in known_revisions():
        raise DatabaseUnusable(
            f"{described(url)}: it is at revision {revision}, which this release does not know",
            "deploy the release that knows it, or restore a backup with ./inv rollback; "
            f"if only the number was changed by hand, set version_num to {HEAD} in alembic_version",
        )
    if server < OLDEST_SERVER:
        raise DatabaseUnusable(
            f"{described(url)}: PostgreSQL {server} is too old; use {OLDEST_SERVER} or newer",
            "upgrade the server, or use another one",
        )
    if with_tools and is_postgresql:
        await asyncio.to_thread(_require_tools, server)
    return found


def _differences(connection: sa.Connection, revision: str | None) -> list[str]:
    """Return differences from the schema that this release's migrations make, as lines."""
    if revision in (None, HEAD):
        return lines_of(differences(connection)) if revision else []
    return [f"- revision {revision}", f"+ revision {HEAD}"]


async def _occupied(connection: AsyncConnection) -> list[str]:
    """Return which of our tables have rows; an older schema may lack some tables."""
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
    """Raise DatabaseUnusable if the role may not create tables, or other tables are in the way."""
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
            "the database has no schema on the search path", "create one: CREATE SCHEMA NAME"
        )
    if not row.may_create:
        raise DatabaseUnusable(
            f"role {row.role} may not create tables in schema {row.schema}",
            f"as the schema's owner, run GRANT CREATE ON SCHEMA {row.schema} TO {row.role}",
        )
    if revision is None and row.taken:
        raise DatabaseUnusable(
            "the database has a table `users` that is not the controller's",
            "name another database, or a schema for the controller: ?options=-csearch_path%3DNAME",
        )


def _require_tools(server: int) -> None:
    for tool in TOOLS:
        version = tool_version(tool)
        if version < server:
            raise DatabaseUnusable(
                f"{tool} on the host has version {version} and the server {server}, "
                "so backups would fail",
                CLIENT_HINT,
            )


def _unusable(url: str, said: str) -> DatabaseUnusable:
    words = " ".join(said.split())
    hint = next((todo for mark, todo in HINTS if re.search(mark, words)), None)
    return DatabaseUnusable(f"{described(url)}: {words}", hint)

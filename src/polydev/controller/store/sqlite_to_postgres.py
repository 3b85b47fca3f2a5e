"""Restore of a SQLite backup into PostgreSQL: all rows of all tables, in one transaction.

The backup is migrated to this release's schema first, so it may be older. The same transaction
reads the rows back and compares their number and contents.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.database import BUSY_TIMEOUT_MS, create_engine
from polydev.controller.migrate import migrate
from polydev.controller.store import tables
from polydev.controller.store.backup_error import BackupError

ROWS_AT_ONCE = 1000
NOTHING_CHANGED = "PostgreSQL is unchanged"
_TABLES = tables.metadata.sorted_tables
_SEQUENCE = sa.text("SELECT seq FROM sqlite_sequence WHERE name = :table")
_SET_SEQUENCE = sa.text(
    "SELECT setval(pg_get_serial_sequence(:table, :column), greatest(:last, 1), :last > 0)"
).bindparams(sa.bindparam("last", type_=sa.Integer))


async def fill_postgres(url: str, copy: Path) -> None:
    """Migrate the backup, and replace the rows of our tables in PostgreSQL by its rows.

    Raises BackupError and MigrationError; PostgreSQL is unchanged then.
    """
    copy_url = f"sqlite+aiosqlite:///{copy}"
    await migrate(copy_url)
    await migrate(url)
    source, target = create_engine(copy_url), create_engine(url)
    try:
        async with source.connect() as rows, target.begin() as connection:
            await connection.execute(sa.text(f"SET LOCAL lock_timeout = {BUSY_TIMEOUT_MS}"))
            for table in reversed(_TABLES):
                await connection.execute(sa.delete(table))
            for table in _TABLES:
                await _copy(table, rows, connection)
            for table in _TABLES:
                await _compare(table, rows, connection)
    except (SQLAlchemyError, OSError) as error:
        raise BackupError(f"PostgreSQL failed: {_driver_words(error)}", NOTHING_CHANGED) from error
    finally:
        await source.dispose()
        await target.dispose()


async def _copy(table: sa.Table, rows: AsyncConnection, to: AsyncConnection) -> None:
    found = await rows.stream(sa.select(table))
    try:
        async for part in found.mappings().partitions(ROWS_AT_ONCE):
            await to.execute(sa.insert(table), [dict(row) for row in part])
    except SQLAlchemyError as error:
        raise BackupError(
            f"PostgreSQL rejects a row of {table.name}: {_driver_words(error)}",
            NOTHING_CHANGED,
        ) from error
    column = table.autoincrement_column
    if column is not None:
        # Not the highest number that is left: clients continue after the last one that they saw.
        last = (await rows.execute(_SEQUENCE, {"table": table.name})).scalar_one_or_none() or 0
        names = {"table": table.name, "column": column.name, "last": last}
        await to.execute(_SET_SEQUENCE, names)


async def _compare(table: sa.Table, rows: AsyncConnection, to: AsyncConnection) -> None:
    wanted, found = await _content(table, rows), await _content(table, to)
    if wanted != found:
        there = f"{found[0]} rows in PostgreSQL differ from the {wanted[0]} rows of the backup"
        raise BackupError(f"{table.name}: {there}", NOTHING_CHANGED)


async def _content(table: sa.Table, connection: AsyncConnection) -> tuple[int, int]:
    """Return the number of rows and a sum of their hashes, which does not depend on their order."""
    count, total = 0, 0
    async for part in (await connection.stream(sa.select(table))).partitions(ROWS_AT_ONCE):
        count += len(part)
        total += sum(int(hashlib.sha256(repr(tuple(row)).encode()).hexdigest(), 16) for row in part)
    return count, total


def _driver_words(error: Exception) -> str:
    # SQLAlchemy's own message would quote the statement and its rows.
    cause = getattr(error, "orig", None) or error
    return str(cause).partition("\n")[0] or type(cause).__name__

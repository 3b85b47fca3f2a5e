"""Migrate the database to this release's revision; a failed migration changes nothing."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from polydev.controller import migrations
from polydev.controller.database import create_engine, make_wal, schema_revision
from polydev.errors import Error

MIGRATIONS = Path(migrations.__file__).parent
# For a controller that still writes, or another migration, on a busy host: a deployment that gives
# up is rolled back.
BUSY_TIMEOUT_MS = 60_000


class MigrationError(Error):
    code = "migration"


async def migrate(database_url: str, folder: Path = MIGRATIONS) -> tuple[str | None, str | None]:
    """Migrate to the newest revision in `folder`. Return the revisions before and after.

    Raises MigrationError, and the database is unchanged.
    """
    # SQLite takes the write lock first: of two migrations at once, the second finds nothing to do.
    # For other databases env.py takes a lock.
    engine = create_engine(database_url, begin="BEGIN IMMEDIATE", busy_timeout_ms=BUSY_TIMEOUT_MS)
    try:
        make_wal(database_url)
        before = await schema_revision(engine)
        async with engine.connect() as connection:
            await connection.run_sync(_upgrade, folder)
        return before, await schema_revision(engine)
    except (SQLAlchemyError, sqlite3.Error, CommandError, OSError) as error:
        raise MigrationError(
            f"cannot migrate the database: {_reason(error)}",
            "nothing was changed; fix the cause, then run master-controller migrate again",
        ) from error
    finally:
        await engine.dispose()


def known_revisions(folder: Path = MIGRATIONS) -> frozenset[str]:
    """Return all revisions that this code knows, the newest one included."""
    script = ScriptDirectory.from_config(_config(folder))
    return frozenset(each.revision for each in script.walk_revisions())


def _upgrade(connection: Connection, folder: Path) -> None:
    command.upgrade(_config(folder, connection=connection), "head")


def _config(folder: Path, **attributes: object) -> Config:
    config = Config(attributes=attributes)
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _reason(error: Exception) -> str:
    cause = getattr(error, "orig", None) or error
    return f"{type(cause).__name__}: {cause}"

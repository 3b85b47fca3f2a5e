"""Backup and restore of the database, also while it is in use; a restore is whole or undone.

    url, file --backup, restore--> sqlite_backup, postgres_backup or sqlite_to_postgres

A backup of SQLite is a SQLite file; one of PostgreSQL is an archive of pg_dump with our tables
only, since the database may hold others, as Supabase's does. A backup of SQLite can be restored
into PostgreSQL too, which is how a host moves there.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from polydev.controller.database import create_engine, schema_revision
from polydev.controller.migrate import known_revisions, migrate
from polydev.controller.store import postgres_backup, sqlite_backup, tables
from polydev.controller.store.backup_error import STOP_HINT, BackupError
from polydev.controller.store.sqlite_to_postgres import fill_postgres
from polydev.durable_files import sync

SQLITE_START = b"SQLite format 3\0"
ARCHIVE_START = b"PGDMP"
KINDS = {"sqlite": SQLITE_START, "postgresql": ARCHIVE_START}
# PostgreSQL lists the connection of a process that has ended until its backend notices.
CLOSING_SECONDS = 10.0
CLOSING_POLL_SECONDS = 0.1


async def backup(url: str, file: Path) -> dict[str, object]:
    """Back up the database to a new file, and return a description.

    Other processes may use the database meanwhile. Raises BackupError.
    """
    kind = _kind(url)
    if kind == "sqlite":
        sqlite_backup.require_file(sqlite_backup.path_of(url))
    revision = _require_known(await _revision(url), "the database")
    copy = sqlite_backup.copy_to if kind == "sqlite" else postgres_backup.copy_to
    with _new_file(file) as partial:
        await asyncio.to_thread(copy, url, partial)
        size = partial.stat().st_size
    return {"file": str(file), "database": kind, "revision": revision, "bytes": size}


async def restore(url: str, file: Path, *, in_use: bool = False) -> dict[str, object]:
    """Replace the database by a backup, migrate it to this release, and return a description.

    The backup is read first. If anything fails, the database is unchanged, except in the last
    step, the migration of an older backup. Raises BackupError, also while a process has the
    database open, and MigrationError.

    in_use  allow a running controller, with PostgreSQL: the restore is one transaction
    """
    kind = _kind(url)
    async with _read(file, kind) as copy:
        if copy.kind != kind:
            await _fill_postgres(url, file)
        elif copy.script is None:
            await asyncio.to_thread(sqlite_backup.put_back, url, file)
        else:
            if not in_use:
                await _require_unused(url)
            await asyncio.to_thread(postgres_backup.put_back, url, copy.script)
    revision = copy.revision
    _before, after = await migrate(url)
    rows = await _rows(url)
    migrated = {} if revision == after else {"migratedFrom": revision}
    return {"file": str(file), "database": kind, "revision": after, **migrated, "rows": rows}


async def require_restorable(url: str, file: Path) -> dict[str, object]:
    """Check that a backup can be restored, and describe it. Raises BackupError like `restore`."""
    async with _read(file, _kind(url)) as copy:
        return {"file": str(file), "database": copy.kind, "revision": copy.revision}


@dataclass(frozen=True)
class _Copy:
    """A backup that this release can restore; `script` is the SQL of one of PostgreSQL."""

    kind: str
    revision: str
    script: Path | None = None


@asynccontextmanager
async def _read(file: Path, kind: str) -> AsyncIterator[_Copy]:
    """Read a backup that a database of this kind can take. Raises BackupError."""
    copied = _require_kind(file, kind)
    if copied == "sqlite":
        found = await asyncio.to_thread(sqlite_backup.revision_of, file)
        yield _Copy(copied, _require_known(found, str(file)))
        return
    with tempfile.TemporaryDirectory(prefix="polydev-restore-") as folder:
        script = await asyncio.to_thread(postgres_backup.script_of, file, Path(folder))
        revision = _require_known(postgres_backup.revision_in(script), str(file))
        yield _Copy(copied, revision, script)


def _kind(url: str) -> str:
    return sa.make_url(url).get_backend_name()


async def _fill_postgres(url: str, file: Path) -> None:
    """Restore a backup of SQLite into PostgreSQL."""
    if (there := await _revision(url)) is not None:
        _require_known(there, "the database")
    await _require_unused(url)
    with tempfile.TemporaryDirectory(prefix="polydev-restore-") as folder:
        copy = Path(folder, "copy")
        await asyncio.to_thread(shutil.copyfile, file, copy)
        await fill_postgres(url, copy)


def _require_kind(file: Path, kind: str) -> str:
    """Return the kind of a backup. Raises BackupError where the database cannot take it."""
    try:
        with file.open("rb") as opened:
            start = opened.read(len(SQLITE_START))
    except OSError as error:
        raise BackupError(f"cannot read {file}: {error.strerror}") from error
    found = next((name for name, mark in KINDS.items() if start.startswith(mark)), None)
    if found is None or (found, kind) == ("postgresql", "sqlite"):
        what = f"a backup of {found}" if found else "not a backup of a database"
        raise BackupError(f"{file} is {what}", f"the settings name a {kind} database")
    return found


def _require_known(revision: str | None, what: str) -> str:
    if revision is None:
        raise BackupError(f"{what} has none of the controller's tables: it was never migrated")
    if revision not in known_revisions():
        raise BackupError(
            f"{what} is at revision {revision}, which this release does not know",
            "restore with the release that made it, or a newer one",
        )
    return revision


async def _revision(url: str) -> str | None:
    engine = create_engine(url)
    try:
        return await schema_revision(engine)
    except (SQLAlchemyError, OSError) as error:
        raise BackupError(f"cannot read the database: {_driver_words(error)}") from error
    finally:
        await engine.dispose()


async def _require_unused(url: str) -> None:
    """Raise BackupError if any process of ours stays connected for `CLOSING_SECONDS`."""
    engine = create_engine(url)
    clock = asyncio.get_running_loop().time
    deadline = clock() + CLOSING_SECONDS
    try:
        async with engine.connect() as connection:
            while others := (await connection.execute(postgres_backup.OTHERS)).scalar_one():
                if clock() >= deadline:
                    break
                await connection.rollback()  # a transaction sees one snapshot of the statistics
                await asyncio.sleep(CLOSING_POLL_SECONDS)
    except (SQLAlchemyError, OSError) as error:
        raise BackupError(f"cannot reach the database: {_driver_words(error)}") from error
    finally:
        await engine.dispose()
    if others:
        message = f"a controller is using the database: {others} connections are open"
        raise BackupError(message, STOP_HINT)


async def _rows(url: str) -> dict[str, int]:
    engine = create_engine(url)
    try:
        async with engine.connect() as connection:
            return {
                table.name: (
                    await connection.execute(sa.select(sa.func.count()).select_from(table))
                ).scalar_one()
                for table in tables.metadata.sorted_tables
            }
    finally:
        await engine.dispose()


@contextmanager
def _new_file(file: Path) -> Iterator[Path]:
    """Yield a temporary file to write, readable by its owner only; it gets its name at the end."""
    if file.exists():
        raise BackupError(f"{file} already exists", "name a new file")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    except OSError as error:
        raise BackupError(f"cannot write {file}: {error.strerror}") from error
    partial = Path(name)
    try:
        yield partial
        os.fsync(handle)
        os.link(partial, file)  # unlike a rename, this replaces no file
        sync(file.parent)
    except FileExistsError as error:
        raise BackupError(f"{file} already exists", "name a new file") from error
    finally:
        os.close(handle)
        with suppress(FileNotFoundError):
            partial.unlink()


def _driver_words(error: Exception) -> str:
    # SQLAlchemy's own message would quote the statement.
    return str(getattr(error, "orig", None) or error)

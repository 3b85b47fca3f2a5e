"""Backup and restore of SQLite with its own backup API, in one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy.engine import make_url

from polydev.controller.store.backup_error import STOP_HINT, BackupError

WAIT_SECONDS = 5.0


def path_of(url: str) -> Path:
    return Path(make_url(url).database or "")


def require_file(path: Path) -> None:
    if not path.is_file():
        raise BackupError(f"there is no database at {path}")


def copy_to(url: str, file: Path) -> None:
    """Back up the database to `file`. Raises BackupError, also if the backup is damaged."""
    with (
        _backup_errors("cannot back up the database"),
        closing(_opened(path_of(url))) as live,
        closing(_opened(file)) as copy,
    ):
        live.backup(copy)
        # Else the backup would need its journal, which is a file of its own.
        copy.execute("PRAGMA journal_mode=DELETE")
    revision_of(file)


def revision_of(file: Path) -> str | None:
    """Return a backup's revision; None without our tables. Raises BackupError if it is damaged."""
    with _backup_errors(f"{file} is damaged"), closing(_read_only(file)) as copy:
        _require_sound(copy, file)
        known = "SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'"
        if copy.execute(known).fetchone() is None:
            return None
        row = copy.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])


def put_back(url: str, file: Path) -> None:
    """Replace the database by a backup. Raises BackupError; the database is unchanged then."""
    path = path_of(url)
    with (
        _backup_errors(f"cannot restore {path}"),
        closing(_read_only(file)) as copy,
        closing(_opened(path)) as live,
    ):
        _require_alone(live, path)
        copy.backup(live)
        live.execute("PRAGMA journal_mode=WAL")


def _opened(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None)


def _read_only(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)


def _require_alone(live: sqlite3.Connection, path: Path) -> None:
    """Raise BackupError if others use the database: SQLite ends WAL mode for a sole user only."""
    try:
        live.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.OperationalError as error:
        raise BackupError(f"another process is using {path}", STOP_HINT) from error


def _require_sound(copy: sqlite3.Connection, file: Path) -> None:
    found = [str(row[0]) for row in copy.execute("PRAGMA integrity_check(3)")]
    if found != ["ok"]:
        raise BackupError(f"{file} is damaged: {'; '.join(found)}")
    if copy.execute("PRAGMA foreign_key_check").fetchone() is not None:
        raise BackupError(f"{file} is damaged: it has rows that refer to missing rows")


@contextmanager
def _backup_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise BackupError(f"{what}: {error}") from error

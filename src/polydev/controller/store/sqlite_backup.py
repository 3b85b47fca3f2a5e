"""Copies of SQLite, by its own backup: a transaction like any other, however it ends."""

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
        raise BackupError(f"there is no database {path}")


def copy_to(url: str, file: Path) -> None:
    """Copy the database to `file`. Raises CopyError, also if the copy is damaged."""
    with (
        _told("the database cannot be copied"),
        closing(_opened(path_of(url))) as live,
        closing(_opened(file)) as copy,
    ):
        live.backup(copy)
        # With its journal as a file of its own the copy would be in need of it.
        copy.execute("PRAGMA journal_mode=DELETE")
    revision_of(file)


def revision_of(file: Path) -> str | None:
    """The revision of a copy; None if it has none of our tables. Raises CopyError if damaged."""
    with _told(f"{file} is damaged"), closing(_read_only(file)) as copy:
        _require_sound(copy, file)
        known = "SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'"
        if copy.execute(known).fetchone() is None:
            return None
        row = copy.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])


def put_back(url: str, file: Path) -> None:
    """Make the database what the copy is. Raises CopyError; it is what it was then."""
    path = path_of(url)
    with (
        _told(f"{path} cannot be restored"),
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
    """SQLite leaves its WAL only for the one process that has the file open."""
    try:
        live.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.OperationalError as error:
        raise BackupError(f"another process uses {path}", STOP_HINT) from error


def _require_sound(copy: sqlite3.Connection, file: Path) -> None:
    found = [str(row[0]) for row in copy.execute("PRAGMA integrity_check(3)")]
    if found != ["ok"]:
        raise BackupError(f"{file} is damaged: {'; '.join(found)}")
    if copy.execute("PRAGMA foreign_key_check").fetchone() is not None:
        raise BackupError(f"{file} is damaged: it has rows that name others that are not there")


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise BackupError(f"{what}: {error}") from error

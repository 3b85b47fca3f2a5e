"""The controller's SQLite database: copied while in use, compared, restored.

A restore writes into the existing file with SQLite's backup API: one transaction, which processes
with the database open see like any other. An open file is never replaced: the writes of such a
process would be lost, or its log would be replayed into the new file. Only a database that cannot
be read is replaced, when no process has it open.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polydev.durable_files import copy_new, sync, unfinished
from polydev.hosttool.errors import HostError
from polydev.hosttool.file_metadata import PathEntry, gid_of, uid_of
from polydev.hosttool.listeners import PROC, opened_by

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection

BESIDE = ("-wal", "-shm", "-journal")
COMPARED_PRAGMAS = ("user_version", "application_id")
LIVE, AT_REST = "mode=rw", "mode=ro&immutable=1"
BUSY, LOCKED = 5, 6  # SQLite's codes; Python has names for them from 3.11 on
LOCK_SECONDS, PAUSE_SECONDS = 30.0, 0.05
SOUND_HINT = "`./inv database.restore FILE --stop` replaces it with an intact copy"


def copy_database(source: Path, target: Path) -> None:
    """Make a consistent, checked copy, also while others write to `source`. Raises HostError."""
    import sqlite3

    target.unlink(missing_ok=True)
    os.close(os.open(target, os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with connected(source, LIVE) as live, connected(target, LIVE) as copy:
            live.backup(copy)
        with connected(target, AT_REST) as copy:
            damage = _damage(copy)
    except sqlite3.Error as error:
        raise HostError("database-damaged", f"cannot copy {source}: {error}") from error
    if damage:
        raise HostError("database-damaged", f"{source} is damaged: {damage}", SOUND_HINT)
    sync(target)


def _damage(connection: Connection) -> str:
    """Describe the damage of a database; empty for an intact one."""
    found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(3)")]
    if found != ["ok"]:
        return "; ".join(found)
    row = connection.execute("PRAGMA foreign_key_check").fetchone()
    return f"a row of {row[0]} refers to a row of {row[2]} that is not there" if row else ""


def content_sha256(path: Path, access: str = LIVE) -> str | None:
    """Return a hash of rows and schema, whatever the pages; None if it cannot be read."""
    import sqlite3

    digest = hashlib.sha256()
    try:
        with connected(path, access) as connection:
            connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
            connection.execute("BEGIN")
            for pragma in COMPARED_PRAGMAS:
                digest.update(f"{connection.execute(f'PRAGMA {pragma}').fetchone()[0]}\n".encode())
            for line in connection.iterdump():
                digest.update(f"{line}\n".encode("utf-8", "surrogateescape"))
    except sqlite3.Error:
        return None
    return digest.hexdigest()


def row_counts(path: Path) -> dict[str, int]:
    """Return the number of rows of each table in a copy, except that of the schema's revision."""
    with connected(path, AT_REST) as copy:
        tables = copy.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        internal = ("sqlite_", "alembic_version")
        names = [str(row[0]) for row in tables if not str(row[0]).startswith(internal)]
        return {
            name: copy.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]  # noqa: S608  (its own)
            for name in names
        }


@contextmanager
def connected(path: Path, access: str) -> Iterator[Connection]:
    import sqlite3

    connection = sqlite3.connect(
        f"{path.as_uri()}?{access}", timeout=LOCK_SECONDS, uri=True, isolation_level=None
    )
    try:
        yield connection
    finally:
        connection.close()


def restore_in_place(live: Path, stored: Path, entry: PathEntry) -> None:
    """Restore the stored copy in one transaction. Raises HostError."""
    import sqlite3

    deadline = time.monotonic() + LOCK_SECONDS

    def give_up(status: int, _remaining: int, _total: int) -> None:
        if status in (BUSY, LOCKED) and time.monotonic() > deadline:
            raise HostError(
                "database-in-use",
                f"cannot restore {live}: it was locked for {LOCK_SECONDS:g} s{_used_by(live)}",
                "end the process that uses it, then run the restore again",
            )

    try:
        with connected(stored, AT_REST) as copy, connected(live, LIVE) as database:
            copy.backup(database, progress=give_up, sleep=PAUSE_SECONDS)
    except sqlite3.Error as error:
        raise HostError("database-damaged", f"cannot restore {live}: {error}") from error
    set_owner(live, entry)


def replace_database(live: Path, stored: Path, entry: PathEntry) -> None:
    """Replace a database that cannot be read, or does not exist, with the stored copy.

    Raises HostError `database-in-use`.
    """
    require_unused(live)
    fresh = unfinished(live)
    copy_new(stored, fresh)
    set_owner(fresh, entry)
    # Logs go first: a leftover one would be replayed into the new file.
    _remove_beside(live)
    fresh.replace(live)
    sync(live.parent)


def remove_database(live: Path) -> None:
    """Remove the database. Raises HostError `database-in-use`."""
    require_unused(live)
    # The database goes last, so that a killed call can be repeated.
    _remove_beside(live)
    live.unlink(missing_ok=True)
    sync(live.parent)


def set_owner(path: Path, entry: PathEntry) -> None:
    os.chown(path, uid_of(entry.owner), gid_of(entry.group))
    path.chmod(entry.mode)
    sync(path)


def require_unused(live: Path) -> None:
    """Raise HostError `database-in-use` if a process has the database open."""
    users = _used_by(live)
    if users:
        raise HostError(
            "database-in-use",
            f"cannot replace {live}: it is open{users}",
            "end that process, then run the restore again",
        )


def _used_by(live: Path) -> str:
    """Return ` in process 12 (python3)`; empty if no process has the database open."""
    found = processes_with(live)
    words = ", ".join(f"{pid} ({_name_of(pid)})" for pid in found)
    return f" in process {words}" if found else ""


def processes_with(live: Path) -> list[int]:
    """Return the processes that have the database, its log or the log's index open."""
    real = os.path.realpath(live)
    places = {real, *(f"{real}{suffix}" for suffix in BESIDE)}
    found = []
    for process in PROC.glob("[0-9]*"):
        opened = {each.removesuffix(" (deleted)") for each in opened_by(process)}
        if not places.isdisjoint(opened):
            found.append(int(process.name))
    return sorted(found)


def _name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "ended"


def _remove_beside(live: Path) -> None:
    for suffix in BESIDE:
        live.with_name(f"{live.name}{suffix}").unlink(missing_ok=True)
    sync(live.parent)

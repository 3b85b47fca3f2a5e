"""The controller's SQLite database: copied while in use, compared, replaced under a process.

A process that has the old file open keeps it, with its log, until it ends: its answers stay
whole, and what it still writes goes with it. SQLite sees that the file has moved, and so does
not remove, as it otherwise would when it closes, the log that by then is the successor's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from polydev.hosttool.durable import copy_new, sync, unfinished
from polydev.hosttool.errors import HostError
from polydev.hosttool.tree import Entry, gid_of, uid_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection

BESIDE = ("-wal", "-shm", "-journal")
COMPARED_PRAGMAS = ("user_version", "application_id")
LIVE, AT_REST = "mode=rw", "mode=ro&immutable=1"
WAL_VERSION, WAL_VERSION_AT = 2, 18


def copy_database(source: Path, target: Path) -> None:
    """A consistent copy, whoever writes to `source` meanwhile. Raises HostError."""
    import sqlite3

    target.unlink(missing_ok=True)
    os.close(os.open(target, os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with _connected(source, LIVE) as live, _connected(target, LIVE) as copy:
            live.backup(copy)
    except sqlite3.Error as error:
        raise HostError("database-damaged", f"{source} cannot be copied: {error}") from error
    sync(target)


def content_sha256(path: Path, access: str = LIVE) -> str | None:
    """A hash of what the database says, not of how its pages lie; None if it cannot be read."""
    import sqlite3

    digest = hashlib.sha256()
    try:
        with _connected(path, access) as connection:
            connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
            connection.execute("BEGIN")
            for pragma in COMPARED_PRAGMAS:
                digest.update(f"{connection.execute(f'PRAGMA {pragma}').fetchone()[0]}\n".encode())
            for line in connection.iterdump():
                digest.update(f"{line}\n".encode("utf-8", "surrogateescape"))
    except sqlite3.Error:
        return None
    return digest.hexdigest()


@contextmanager
def _connected(path: Path, access: str) -> Iterator[Connection]:
    import sqlite3

    connection = sqlite3.connect(f"{path.as_uri()}?{access}", uri=True, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def can_be_replaced_in_use(live: Path) -> bool:
    """Only a write-ahead log is safe: another journal would be played into the successor."""
    try:
        with live.open("rb") as file:
            file.seek(WAL_VERSION_AT)
            return file.read(1) == bytes([WAL_VERSION])
    except FileNotFoundError:
        return True


def replace_database(live: Path, stored: Path, entry: Entry) -> None:
    """Put the stored copy in the database's place; the next process that opens it sees it."""
    fresh = unfinished(live)
    copy_new(stored, fresh)
    os.chown(fresh, uid_of(entry.owner), gid_of(entry.group))
    fresh.chmod(entry.mode)
    if live.exists():
        _checkpoint(live)
    # Logs go first: one that is left over would be played into the new file.
    _remove_beside(live)
    fresh.replace(live)
    sync(live.parent)


def remove_database(live: Path) -> None:
    """For when nothing has it open."""
    # Last of all what says that there was something to remove.
    _remove_beside(live)
    live.unlink(missing_ok=True)
    sync(live.parent)


def _checkpoint(live: Path) -> None:
    import sqlite3

    # So that a kill before the rename leaves the old database with all that was in its log.
    with suppress(sqlite3.Error), _connected(live, LIVE) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _remove_beside(live: Path) -> None:
    for suffix in BESIDE:
        live.with_name(f"{live.name}{suffix}").unlink(missing_ok=True)

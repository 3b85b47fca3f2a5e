"""Cache of the check whether the SQLite database has the schema that a release needs.

Starting the release for this check takes longer than the rest of a plan. So a checksum of a schema
that passed is stored together with the release, in a folder that a restart of the host empties.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from polydev.durable_files import read_json, write_json
from polydev.hosttool.paths import Paths
from polydev.hosttool.run_controller_command import uses_postgresql
from polydev.hosttool.sqlite_database import LIVE, connected

# Without SQLite's internal tables.
ALL = (
    "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY 2"
)
REVISION = "SELECT version_num FROM alembic_version"


def checksum(database: Path) -> str | None:
    """Checksum of all tables, indexes, triggers, and the revision; None if it cannot be read."""
    import sqlite3

    try:
        with connected(database, LIVE) as connection:
            rows = [connection.execute(each).fetchall() for each in (ALL, REVISION)]
    except sqlite3.Error:
        return None
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def is_known(paths: Paths, release: str) -> bool:
    """Whether this release has checked the schema, and it is unchanged since."""
    found = _now(paths, release)
    try:
        return found is not None and read_json(paths.known_schema) == found
    except ValueError:
        return False


def remember(paths: Paths, release: str) -> None:
    """Store that this release has checked the present schema and found it right."""
    found = _now(paths, release)
    if found is not None:
        paths.known_schema.parent.mkdir(parents=True, exist_ok=True)
        write_json(paths.known_schema, found)


def _now(paths: Paths, release: str) -> dict[str, object] | None:
    if uses_postgresql(paths) or not paths.database.is_file():
        return None
    found = checksum(paths.database)
    return {"release": release, "sha256": found} if found else None

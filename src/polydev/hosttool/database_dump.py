"""The dump of the controller's PostgreSQL database in a backup.

The release's own program dumps and restores it, with the secrets on the host at that time. So a
backup has the database in use, and a restore, which restores the secrets first, writes to the same
database again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polydev.durable_files import copy_new, remove
from polydev.hosttool.file_metadata import file_sha256
from polydev.hosttool.run_controller_command import ControllerProgram, database_in_words

DUMP_NAME = "dump"
COPY_ERROR = "database-copy"


@dataclass(frozen=True)
class DatabaseDump:
    """A dump in a backup; `database` describes the database that it was made from."""

    stored: Path
    sha256: str
    size_bytes: int
    revision: str
    database: str

    def as_dict(self) -> dict[str, object]:
        return {
            "stored": self.stored.name,
            "sha256": self.sha256,
            "sizeBytes": self.size_bytes,
            "revision": self.revision,
            "database": self.database,
        }


def dump_from(folder: Path, document: dict[str, Any]) -> DatabaseDump:
    return DatabaseDump(
        folder / document["stored"],
        document["sha256"],
        document["sizeBytes"],
        document["revision"],
        document["database"],
    )


def make_dump(program: ControllerProgram, folder: Path) -> DatabaseDump:
    """Dump the database in use into a folder of a backup. Raises HostError."""
    stored = folder / DUMP_NAME
    with exchange_folder(program) as place:
        said = program.ask("database", "backup", str(place / DUMP_NAME), code=COPY_ERROR)
        copy_new(place / DUMP_NAME, stored)
    size = stored.stat().st_size
    words = database_in_words(program.paths)
    return DatabaseDump(stored, file_sha256(stored), size, str(said["revision"]), words)


def restore_dump(program: ControllerProgram, dump: DatabaseDump) -> None:
    """Restore the dump in one transaction; the controller may serve meanwhile. Raises HostError."""
    with exchange_folder(program) as place:
        copy = place / DUMP_NAME
        copy_new(dump.stored, copy)
        program.own(copy)
        program.ask("database", "restore", str(copy), "--in-use", code=COPY_ERROR)


@contextmanager
def exchange_folder(program: ControllerProgram) -> Iterator[Path]:
    """Create a folder of the controller's user for one verb, and remove it afterwards."""
    place = program.paths.home / "exchange"
    remove(place)
    place.mkdir(0o700)
    program.own(place)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)

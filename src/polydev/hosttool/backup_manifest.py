"""A finished backup: a folder with a manifest, which has the checksum of every file in it.

backups/<id>/backup.json          manifest
backups/<id>/backup.json.sha256
backups/<id>/files/000001         contents of files, in the manifest's order
backups/<id>/database                copy of the SQLite database
backups/<id>/dump                    dump of the PostgreSQL database, if the host uses one
backups/<id>/moved.json, moved       second copy of the SQLite database, if this deployment moved
                                     it to PostgreSQL: its state after the controller had stopped
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polydev.durable_files import json_bytes, read_json, write_json
from polydev.hosttool.backup_scope import Scope, scope_from
from polydev.hosttool.database_dump import DatabaseDump, dump_from
from polydev.hosttool.deployment_counter import number_of
from polydev.hosttool.errors import HostError
from polydev.hosttool.file_metadata import PathEntry, entry_from, file_sha256, gid_of, uid_of
from polydev.hosttool.golden_link import GoldenTarget, golden_damage
from polydev.hosttool.paths import Paths, require_id
from polydev.hosttool.release_files import release_damage
from polydev.hosttool.systemd import UnitStatus

MANIFEST = "backup.json"
SUM = "backup.json.sha256"
MOVED = "moved.json"
SHOWN = 5
ANOTHER_BACKUP_HINT = "choose another backup; `polydev-host backup list` on the host lists them"


@dataclass(frozen=True)
class BackupEntry:
    """A path in a backup; for a file, `stored` has its content."""

    entry: PathEntry
    stored: Path | None = None


@dataclass(frozen=True)
class DatabaseCopy:
    """The copy of a SQLite database; `content` is the hash of its rows and schema."""

    copy: BackupEntry
    content: str


@dataclass(frozen=True)
class Backup:
    """A backup as its manifest describes it; a field is None if the host had nothing of that kind.

    `number` orders all that was made on the host; backups of earlier versions have None and are
    older. `moved` has the number of rows of each table that this backup's deployment moved to
    PostgreSQL; `database` is then the second copy.
    """

    id: str
    folder: Path
    number: int | None
    created_at: str
    scope: Scope
    entries: tuple[BackupEntry, ...]
    units: dict[str, UnitStatus]
    release: str | None
    release_sum: str | None
    database: DatabaseCopy | None
    dump: DatabaseDump | None
    golden: GoldenTarget | None
    moved: dict[str, int] | None = None

    def as_dict(self) -> dict[str, object]:
        """Return what a list of backups shows."""
        stored = [each.entry.size_bytes for each in self.entries if each.stored]
        return {
            "id": self.id,
            "number": self.number,
            "createdAt": self.created_at,
            "files": len(stored),
            "bytes": sum(stored),
            "release": self.release,
            "database": self.dump.database if self.dump else self._sqlite_in_words(),
            "golden": self.golden.image if self.golden else None,
            "moved": self.moved,
        }

    def _sqlite_in_words(self) -> str | None:
        return "SQLite" if self.database and self.database.copy.stored else None


def read_backup(paths: Paths, backup_id: str) -> Backup:
    """Read a backup's manifest. Raises HostError `backup-missing` or `backup-damaged`."""
    folder = paths.backups / require_id(backup_id)
    try:
        data = (folder / MANIFEST).read_bytes()
        expected = (folder / SUM).read_text().split()[0]
        if hashlib.sha256(data).hexdigest() != expected:
            raise ValueError(f"{MANIFEST} does not have the checksum in {SUM}")
        return _with_moved_database(_backup_from(folder, json.loads(data)))
    except FileNotFoundError as error:
        if not folder.is_dir():
            raise HostError(
                "backup-missing", f"backup {backup_id} does not exist", ANOTHER_BACKUP_HINT
            ) from None
        raise _damaged(backup_id, [f"{error.filename} is missing"]) from error
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _damaged(backup_id, [f"{type(error).__name__}: {error}"]) from error


def require_intact(saved: Backup, parts: Backup | None = None, *, with_host: bool = True) -> None:
    """Check that everything that a restore of `parts` (default: all) needs is there and intact.

    `with_host` includes the release and the image, which are not in the backup. Raises HostError
    `backup-damaged`, which names the damage.
    """
    parts = parts or saved
    damage = [words for entry in parts.entries for words in _entry_damage(entry)]
    if parts.database:
        damage += _entry_damage(parts.database.copy)
    if parts.dump:
        damage += _stored_damage(parts.dump.stored, parts.dump.sha256, parts.dump.database)
    controller, store = saved.scope.controller, saved.scope.store
    if with_host and controller and saved.release:
        damage += release_damage(controller.release(saved.release), saved.release_sum)
    if with_host and store and saved.golden:
        damage += golden_damage(store, saved.golden)
    if damage:
        raise _damaged(saved.id, damage)


def _entry_damage(kept: BackupEntry) -> list[str]:
    entry = kept.entry
    if entry.kind == "absent":
        return []
    try:
        uid_of(entry.owner), gid_of(entry.group)
    except KeyError:
        return [f"{entry.path}: this host has no owner {entry.owner}:{entry.group}"]
    if kept.stored is None:
        return []
    return _stored_damage(kept.stored, entry.sha256, str(entry.path))


def _stored_damage(stored: Path, sha256: str, what: str) -> list[str]:
    try:
        found = file_sha256(stored)
    except OSError as error:
        return [f"cannot read {stored}, which holds {what}: {error.strerror}"]
    return [] if found == sha256 else [f"{stored}, which holds {what}, has another checksum"]


def _damaged(backup_id: str, damage: list[str]) -> HostError:
    shown = "; ".join(damage[:SHOWN])
    more = f"; and {len(damage) - SHOWN} more" if len(damage) > SHOWN else ""
    return HostError(
        "backup-damaged", f"backup {backup_id} is damaged: {shown}{more}", ANOTHER_BACKUP_HINT
    )


def _backup_from(folder: Path, document: dict[str, Any]) -> Backup:
    database, golden = document["database"], document["golden"]
    dump = document.get("dump")  # earlier versions made none
    return Backup(
        id=folder.name,
        folder=folder,
        number=number_of(document),
        created_at=document["createdAt"],
        scope=scope_from(document["scope"]),
        entries=tuple(_entry_from(folder, each) for each in document["entries"]),
        units={
            each["unit"]: UnitStatus(each["exists"], each["active"], each["enabled"])
            for each in document["units"]
        },
        release=document["release"],
        release_sum=document["releaseSum"],
        database=database and DatabaseCopy(_entry_from(folder, database), database["content"]),
        dump=dump and dump_from(folder, dump),
        golden=golden and GoldenTarget(golden["target"], golden["image"]),
    )


def _with_moved_database(saved: Backup) -> Backup:
    found = read_json(saved.folder / MOVED)
    if found is None:
        return saved
    moved = found["moved"]
    if _sum_of(moved) != found["sha256"]:
        raise ValueError(f"{MOVED} does not have the checksum in it")
    database = moved["database"]
    kept = DatabaseCopy(_entry_from(saved.folder, database), database["content"])
    return replace(saved, database=kept, moved=moved["rows"])


def write_moved_database(saved: Backup, database: DatabaseCopy, rows: dict[str, int]) -> Backup:
    """Record a later copy of the database in the backup's folder as the one to restore."""
    document = _entry_document(saved.folder, database.copy) | {"content": database.content}
    moved = {"database": document, "rows": rows}
    write_json(saved.folder / MOVED, {"moved": moved, "sha256": _sum_of(moved)})
    return replace(saved, database=database, moved=rows)


def _sum_of(document: object) -> str:
    return hashlib.sha256(json_bytes(document)).hexdigest()


def _entry_from(folder: Path, document: dict[str, Any]) -> BackupEntry:
    stored = document.get("stored")
    return BackupEntry(entry_from(document), folder / stored if stored else None)


def manifest_of(saved: Backup) -> dict[str, object]:
    """Return the manifest, which `read_backup` reads."""
    database, golden = saved.database, saved.golden
    return {
        "id": saved.id,
        "number": saved.number,
        "createdAt": saved.created_at,
        "scope": saved.scope.as_dict(),
        "entries": [_entry_document(saved.folder, each) for each in saved.entries],
        "units": [
            {"unit": unit, "exists": state.exists, "active": state.active, "enabled": state.enabled}
            for unit, state in saved.units.items()
        ],
        "release": saved.release,
        "releaseSum": saved.release_sum,
        "database": database
        and _entry_document(saved.folder, database.copy) | {"content": database.content},
        "dump": saved.dump and saved.dump.as_dict(),
        "golden": golden and {"target": golden.target, "image": golden.image},
    }


def _entry_document(folder: Path, kept: BackupEntry) -> dict[str, object]:
    stored = {"stored": str(kept.stored.relative_to(folder))} if kept.stored else {}
    return kept.entry.as_dict() | stored

"""Backups of a scope: created, listed, pruned.

A backup is written to a folder with a temporary name and finished by renaming that folder. A folder
that a killed verb left behind is not a backup; the next `create` or `prune` removes it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from polydev.durable_files import json_bytes, make_folder, read_json, remove, sync, write_new
from polydev.hosttool.backup_manifest import (
    MANIFEST,
    MOVED,
    SUM,
    Backup,
    BackupEntry,
    DatabaseCopy,
    manifest_of,
    read_backup,
    require_intact,
    write_moved_database,
)
from polydev.hosttool.backup_scope import ControllerScope, Scope, require_restorable
from polydev.hosttool.database_dump import DatabaseDump, make_dump
from polydev.hosttool.deployment_counter import next_number, number_of, order
from polydev.hosttool.disk_reserve import RESERVE_BYTES, keep_reserve
from polydev.hosttool.errors import HostError
from polydev.hosttool.file_metadata import PathEntry, entries_below, entry_of, file_sha256
from polydev.hosttool.golden_link import golden_of
from polydev.hosttool.paths import Paths, require_id
from polydev.hosttool.release_files import current_release, release_sum
from polydev.hosttool.run_controller_command import (
    ControllerProgram,
    database_in_words,
    uses_postgresql,
)
from polydev.hosttool.sqlite_database import AT_REST, content_sha256, copy_database, row_counts
from polydev.hosttool.systemd import Systemd, UnitStatus
from polydev.hosttool.units import known_units
from polydev.hosttool.verb_lock import lock_host

NEW, OLD = ".new-", ".old-"
BLOCK_BYTES = 4096
SLACK_BYTES = 1 << 20
MIB = 1 << 20
DUMP_HINT = (
    "check that the host reaches its database; if its address or password has changed, write the "
    "new URL to /etc/master-controller/secrets/database-url on the host; then run it again"
)


def create(paths: Paths, systemd: Systemd, backup_id: str, scope: Scope) -> Backup:
    """Back up the scope under this id; an intact backup with this id is returned as it is.

    Raises HostError: `no-space` before anything is written, `bad-scope`, `backup-exists`.
    """
    require_id(backup_id)
    require_restorable(scope, paths)
    with lock_host(paths, f"backup create {backup_id}"):
        if (paths.backups / backup_id).exists():
            return _existing(paths, backup_id, scope)
        entries = entries_below(scope.paths)
        _require_kinds(entries)
        _require_space(paths, entries, scope)
        make_folder(paths.backups, 0o700)
        paths.backups.chmod(0o700)
        _remove_leftovers(paths)
        keep_reserve(paths)
        fresh = paths.backups / f"{NEW}{backup_id}"
        (fresh / "files").mkdir(parents=True, mode=0o700)
        units = known_units(systemd, scope, (entry.path for entry in entries))
        saved = _fill(paths, fresh, backup_id, next_number(paths), scope, entries, units)
        _finish(fresh, saved)
        fresh.rename(paths.backups / backup_id)
        sync(paths.backups)
        return read_backup(paths, backup_id)


def keep_moved_database(saved: Backup) -> Backup:
    """Copy the database into its backup again, once the controller is stopped for the move.

    So a restore loses nothing that was written between the backup and the move.
    """
    controller = saved.scope.controller
    if controller is None:
        raise HostError(
            "bad-scope", f"backup {saved.id} does not contain the controller's database"
        )
    # The first copy is valid again until this one is complete.
    remove(saved.folder / MOVED)
    try:
        database = _copy_database(saved.folder, controller.database, "moved")
    except BaseException:  # such as a full disk, whose restore needs the room
        remove(saved.folder / "moved")
        raise
    if database.copy.stored is None:
        raise HostError(
            "database-missing", f"there is no database to move: {controller.database} is missing"
        )
    return write_moved_database(saved, database, row_counts(database.copy.stored))


def _existing(paths: Paths, backup_id: str, scope: Scope) -> Backup:
    saved = read_backup(paths, backup_id)
    require_intact(saved, with_host=False)
    if saved.scope != scope:
        raise HostError(
            "backup-exists",
            f"backup {backup_id} already exists, with another scope",
            "choose another --id",
        )
    return saved


def _require_kinds(entries: list[PathEntry]) -> None:
    odd = [entry for entry in entries if entry.kind not in ("file", "link", "folder", "absent")]
    if odd:
        names = ", ".join(f"{entry.path} ({entry.kind})" for entry in odd)
        raise HostError(
            "bad-scope",
            f"cannot back up {names}: a backup holds files, links and folders only",
            "remove it from the host, or from the scope",
        )


def _require_space(paths: Paths, entries: list[PathEntry], scope: Scope) -> None:
    sizes = [entry.size_bytes for entry in entries if entry.kind == "file"]
    if scope.controller:
        database = scope.controller.database
        beside = (database, database.with_name(f"{database.name}-wal"))
        sizes += [path.stat().st_size for path in beside if path.exists()]
    needed = sum(size + BLOCK_BYTES for size in sizes) + SLACK_BYTES
    if not paths.reserve.exists():
        needed += RESERVE_BYTES
    home = next(path for path in (paths.home, *paths.home.parents) if path.exists())
    status = os.statvfs(home)
    free = status.f_bavail * status.f_frsize
    if free < needed:
        raise HostError(
            "no-space",
            f"not enough disk space: a backup needs {needed / MIB:.1f} MiB in {paths.backups}, "
            f"{free / MIB:.1f} are free",
            "free disk space: `polydev-host backup prune --keep N` on the host removes backups",
        )


def _fill(
    paths: Paths,
    fresh: Path,
    backup_id: str,
    number: int,
    scope: Scope,
    entries: list[PathEntry],
    units: dict[str, UnitStatus],
) -> Backup:
    release = current_release(scope.controller) if scope.controller else None
    return Backup(
        id=backup_id,
        folder=fresh,
        number=number,
        created_at=datetime.now(timezone.utc).isoformat(),
        scope=scope,
        entries=tuple(_copy_files(fresh, entries)),
        units=units,
        release=release,
        release_sum=release_sum(scope.controller, release)
        if scope.controller and release
        else None,
        database=_copy_database(fresh, scope.controller.database) if scope.controller else None,
        dump=_dump_database(fresh, paths, scope.controller, release),
        golden=golden_of(scope.store) if scope.store else None,
    )


def _copy_files(fresh: Path, entries: list[PathEntry]) -> Iterator[BackupEntry]:
    for number, entry in enumerate(entries, 1):
        if entry.kind != "file":
            yield BackupEntry(entry)
            continue
        stored = fresh / "files" / f"{number:06d}"
        data = entry.path.read_bytes()
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise HostError(
                "changing", f"{entry.path} changed while it was backed up", "run it again"
            )
        write_new(stored, data)
        yield BackupEntry(entry, stored)


def _copy_database(fresh: Path, live: Path, name: str = "database") -> DatabaseCopy:
    entry = entry_of(live)
    if entry.kind == "absent":
        return DatabaseCopy(BackupEntry(entry), "")
    stored = fresh / name
    copy_database(live, stored)
    content = content_sha256(stored, AT_REST)
    if content is None:
        raise HostError("database-damaged", f"cannot read the copy of {live}", "run it again")
    copied = PathEntry(
        entry.path,
        "file",
        entry.mode,
        entry.owner,
        entry.group,
        size_bytes=stored.stat().st_size,
        sha256=file_sha256(stored),
    )
    return DatabaseCopy(BackupEntry(copied, stored), content)


def _dump_database(
    fresh: Path, paths: Paths, controller: ControllerScope | None, release: str | None
) -> DatabaseDump | None:
    """Dump the database of the current release, if that is PostgreSQL. Raises HostError."""
    if controller is None or release is None or not uses_postgresql(paths):
        return None
    try:
        return make_dump(ControllerProgram(paths, controller.release(release)), fresh)
    except HostError as error:
        raise HostError(
            error.code,
            f"cannot back up {database_in_words(paths)}: {error.message}",
            error.hint or DUMP_HINT,
        ) from error


def _finish(fresh: Path, saved: Backup) -> None:
    data = json_bytes(manifest_of(saved))
    write_new(fresh / MANIFEST, data)
    write_new(fresh / SUM, f"{hashlib.sha256(data).hexdigest()}  {MANIFEST}\n".encode())
    sync(fresh / "files")
    sync(fresh)


def list_backups(paths: Paths) -> list[dict[str, object]]:
    """Return all finished backups, newest first; one with a damaged manifest has a `problem`.

    A damaged backup has lost its number, so it counts as older than those with a number.
    """
    if not paths.backups.is_dir():
        return []
    names = (path.name for path in paths.backups.iterdir() if not path.name.startswith("."))
    found = [_listed(paths, name) for name in names]
    return sorted(found, key=lambda each: order(number_of(each), str(each["id"])), reverse=True)


def _listed(paths: Paths, backup_id: str) -> dict[str, object]:
    try:
        return read_backup(paths, backup_id).as_dict() | {"problem": None}
    except HostError as error:
        return {"id": backup_id, "problem": error.message}


def prune(paths: Paths, keep: int) -> list[str]:
    """Remove all but the newest `keep`, but not the one that an armed dead-man timer needs."""
    with lock_host(paths, "backup prune"):
        deadman = read_json(paths.deadman) or {}
        needed = deadman.get("backup") if deadman.get("armed") else None
        ids = [str(each["id"]) for each in list_backups(paths)]
        old = [each for each in ids[keep:] if each != needed]
        for backup_id in old:
            (paths.backups / backup_id).rename(paths.backups / f"{OLD}{backup_id}")
        if old:
            sync(paths.backups)  # or a power cut may bring back a backup without its files
        _remove_leftovers(paths)
    return old


def _remove_leftovers(paths: Paths) -> None:
    if paths.backups.is_dir():
        for path in sorted(paths.backups.iterdir()):
            if path.name.startswith((NEW, OLD)):
                shutil.rmtree(path)

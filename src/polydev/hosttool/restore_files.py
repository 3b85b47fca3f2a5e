"""Files of a restore: which ones differ, how each is put back, which units must learn of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from polydev.durable_files import (
    copy_new,
    make_folder,
    read_json,
    remove,
    sync,
    unfinished,
    write_json,
)
from polydev.hosttool.backup_manifest import Backup, BackupEntry
from polydev.hosttool.file_metadata import PathEntry, gid_of, is_below, uid_of
from polydev.hosttool.paths import Paths


@dataclass(frozen=True)
class PathChange:
    """One path to restore: `how` is written (content or kind), adjusted (the rest) or removed."""

    path: Path
    how: str
    wanted: BackupEntry

    def as_dict(self) -> dict[str, object]:
        return {"path": str(self.path), "how": self.how}


def with_later(saved: Backup, later: Iterable[Backup]) -> Backup:
    """Add to a backup what only later backups cover, in the oldest state that one of them has.

    A path that a later scope added was unchanged until that backup, so this is its state at the
    time of `saved`. Paths that only newer releases brought are thus removed, too.
    """
    scope, entries, units = list(saved.scope.paths), list(saved.entries), dict(saved.units)
    for each in later:
        entries += [one for one in each.entries if not is_below(one.entry.path, scope)]
        scope += each.scope.paths
        units |= {unit: state for unit, state in each.units.items() if unit not in units}
    paths = tuple(dict.fromkeys(scope))
    return replace(
        saved, scope=replace(saved.scope, paths=paths), entries=tuple(entries), units=units
    )


def part_of(saved: Backup, roots: tuple[Path, ...], units: Iterable[str]) -> Backup:
    """Return the part of a backup that lies below `roots`, with only these units."""
    return replace(
        saved,
        scope=replace(saved.scope, paths=roots, controller=None, store=None),
        entries=tuple(one for one in saved.entries if is_below(one.entry.path, roots)),
        units={unit: saved.units[unit] for unit in units},
        release=None,
        database=None,
        dump=None,
        golden=None,
    )


def file_changes(kept: Iterable[BackupEntry], now: Iterable[PathEntry]) -> list[PathChange]:
    """Return the changes to make, in order: folders before their contents, removals last."""
    wanted = {one.entry.path: one for one in kept}
    found = {entry.path: entry for entry in now}
    writes = [
        PathChange(path, how, one)
        for path, one in sorted(wanted.items())
        if one.entry.kind != "absent"
        and (how := _difference(one.entry, found.get(path, PathEntry(path, "absent"))))
    ]
    gone = [
        path
        for path, entry in found.items()
        if entry.kind != "absent" and (path not in wanted or wanted[path].entry.kind == "absent")
    ]
    topmost = [path for path in sorted(gone) if not is_below(path.parent, gone)]
    return writes + [
        PathChange(path, "removed", BackupEntry(PathEntry(path, "absent"))) for path in topmost
    ]


def _difference(wanted: PathEntry, now: PathEntry) -> str:
    if (wanted.kind, wanted.sha256, wanted.target) != (now.kind, now.sha256, now.target):
        return "written"
    same = (wanted.mode, wanted.owner, wanted.group) == (
        now.mode,
        now.owner,
        now.group,
    ) and wanted.mtime_ns == now.mtime_ns
    return "" if same else "adjusted"


# The changes of files


def remove_unfinished(places: Iterable[Path]) -> None:
    """Remove the unfinished successors of these places, which a killed restore left."""
    for place in places:
        with suppress(NotADirectoryError):
            remove(unfinished(place))


def apply_change(change: PathChange) -> None:
    entry = change.wanted.entry
    if change.how == "removed":
        remove(change.path)
    elif change.how == "adjusted":
        _adjust(entry.path, entry)
        if entry.kind != "link":
            sync(entry.path)
    elif entry.kind == "folder":
        _make(entry)
    else:
        _replace(change.wanted)


def _make(entry: PathEntry) -> None:
    remove(entry.path)
    make_folder(entry.path.parent)
    fresh = unfinished(entry.path)
    fresh.mkdir(0o700)
    _adjust(fresh, entry)
    sync(fresh)
    fresh.rename(entry.path)
    sync(entry.path.parent)


def _replace(kept: BackupEntry) -> None:
    entry = kept.entry
    make_folder(entry.path.parent)
    fresh = unfinished(entry.path)
    if kept.stored is None:
        fresh.symlink_to(entry.target)
        _adjust(fresh, entry)
    else:
        copy_new(kept.stored, fresh)
        _adjust(fresh, entry)
        sync(fresh)
    if entry.path.is_dir() and not entry.path.is_symlink():
        remove(entry.path)
    fresh.replace(entry.path)
    sync(entry.path.parent)


def _adjust(path: Path, entry: PathEntry) -> None:
    # The owner first: a change of owner takes set-user-id bits away.
    os.chown(path, uid_of(entry.owner), gid_of(entry.group), follow_symlinks=False)
    if entry.kind != "link":
        path.chmod(entry.mode)
    if entry.kind == "file":
        os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))


# Changes that no unit was restarted for yet


@dataclass
class PendingChanges:
    """Paths that changed since the units started; `reload` if systemd must read its files again."""

    paths: set[Path] = field(default_factory=set)
    reload: bool = False
    database: bool = False

    def add(self, changes: list[PathChange], units_folder: Path) -> None:
        self.paths |= {change.path for change in changes if change.how != "adjusted"}
        # An adjusted time counts: systemd compares the times of its files.
        self.reload |= any(is_below(change.path, [units_folder]) for change in changes)

    def write(self, paths: Paths) -> None:
        if not (self.paths or self.reload or self.database):
            remove(unfinished(paths.pending))
            remove(paths.pending)
            return
        document = {
            "paths": sorted(map(str, self.paths)),
            "reload": self.reload,
            "database": self.database,
        }
        write_json(paths.pending, document)


def read_pending(paths: Paths) -> PendingChanges:
    """Read them; there are none if the last restore was completed."""
    try:
        document = read_json(paths.pending) or {}
    except ValueError:
        # Not by a kill, since the file is renamed into place; an extra restart does no harm.
        return PendingChanges(reload=True, database=True)
    return PendingChanges(
        {Path(path) for path in document.get("paths", ())},
        document.get("reload", False),
        document.get("database", False),
    )

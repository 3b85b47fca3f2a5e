"""Changes of a plan → the file system, each in one step, each as it was to the last bit."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from polydev.hosttool.durable import copy_new, make_folder, remove, sync, unfinished
from polydev.hosttool.plan import Change
from polydev.hosttool.saved import Kept
from polydev.hosttool.tree import Entry, gid_of, uid_of


def remove_unfinished(places: Iterable[Path]) -> None:
    """Remove what was killed before it could take one of these places."""
    for place in places:
        with suppress(NotADirectoryError):
            remove(unfinished(place))


def apply(change: Change) -> None:
    entry = change.kept.entry
    if change.how == "removed":
        remove(change.path)
    elif change.how == "adjusted":
        _adjust(entry.path, entry)
        if entry.kind != "link":
            sync(entry.path)
    elif entry.kind == "folder":
        _make(entry)
    else:
        _replace(change.kept)


def _make(entry: Entry) -> None:
    remove(entry.path)
    make_folder(entry.path.parent)
    fresh = unfinished(entry.path)
    fresh.mkdir(0o700)
    _adjust(fresh, entry)
    sync(fresh)
    fresh.rename(entry.path)
    sync(entry.path.parent)


def _replace(kept: Kept) -> None:
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


def _adjust(path: Path, entry: Entry) -> None:
    # The owner first: a change of owner takes set-user-id bits away.
    os.chown(path, uid_of(entry.owner), gid_of(entry.group), follow_symlinks=False)
    if entry.kind != "link":
        path.chmod(entry.mode)
    if entry.kind == "file":
        os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))

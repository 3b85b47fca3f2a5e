"""Merge trees on disk, and change files inside a tree, never through one of its links."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from polydev.image.guest_paths import (
    FOLDER,
    LayerConflict,
    Node,
    NodeAt,
    follow,
    is_mounted,
    landings,
    on_disk,
)


def nodes(tree: Path) -> dict[str, Node]:
    """Return what is at each path below `tree`."""
    at = on_disk(tree)
    found = (str(path.relative_to(tree)) for path in walk(tree))
    return {path: node for path in found if (node := at(path)) is not None}


def walk(tree: Path) -> Iterator[Path]:
    """Yield everything below `tree`, sorted within each folder; links are not followed."""
    for folder, folders, files in os.walk(tree):
        folders.sort()
        for name in sorted([*folders, *files]):
            yield Path(folder, name)


def fit(tree: Path, below: NodeAt, to: Path) -> Path:
    """Move `tree` to the new folder `to`, each path to its place on the tree below.

    Raises LayerConflict.
    """
    landed = landings(nodes(tree), below)
    if all(path == place for path, place in landed.items()):
        tree.rename(to)
    else:
        arrange(tree, landed, to, os.rename)
    return to


def arrange(
    tree: Path, landed: Mapping[str, str], to: Path, place_file: Callable[[Path, Path], None]
) -> None:
    """Make the new folder `to` from the files of `tree`, each path in its new place."""
    to.mkdir()
    # Read first, since moving a file out of a folder changes the folder's time.
    found = {path: os.lstat(tree / path) for path in landed}
    for path, place in landed.items():
        target = to / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if stat.S_ISDIR(found[path].st_mode):
            target.mkdir(exist_ok=True)
        else:
            place_file(tree / path, target)
    for path, place in reversed(list(landed.items())):
        if stat.S_ISDIR(found[path].st_mode):
            give_attributes(to / place, found[path])


def merge_tree(piece: Path, tree: Path) -> None:
    """Move everything of `piece` into `tree`, on the same filesystem. Raises LayerConflict."""
    fitted = fit(piece, on_disk(tree), piece.with_name(f"{piece.name}-fitted"))
    _move_over(fitted, tree)
    shutil.rmtree(fitted)


def _move_over(piece: Path, tree: Path) -> None:
    info = os.lstat(piece)
    for path in sorted(piece.iterdir()):
        target = tree / path.name
        if on_disk(tree)(path.name) == FOLDER:
            _move_over(path, target)
        else:
            path.rename(target)
    give_attributes(tree, info)


def give_attributes(folder: Path, info: os.stat_result) -> None:
    """Set the owner, mode and times of a folder to those of another one."""
    os.chown(folder, info.st_uid, info.st_gid)
    folder.chmod(stat.S_IMODE(info.st_mode))
    os.utime(folder, ns=(info.st_atime_ns, info.st_mtime_ns))


def link_or_copy(source: Path, target: Path) -> None:
    """Make a hard link of a file or link, or a copy if that is on another filesystem."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        info = os.lstat(source)
        if stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode):
            shutil.copy2(source, target, follow_symlinks=False)
        else:
            os.mknod(target, info.st_mode, info.st_rdev)
        os.chown(target, info.st_uid, info.st_gid, follow_symlinks=False)
        if stat.S_ISREG(info.st_mode):
            target.chmod(stat.S_IMODE(info.st_mode))  # a change of the owner clears setuid


def folder_inside(tree: Path, path: str) -> Path:
    """Return the folder that a guest's path leads to, made if missing. Raises LayerConflict."""
    place = tree / follow(path, on_disk(tree))
    try:
        place.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise LayerConflict(f"{path} is no folder in the image") from None
    return place


def remove_inside(tree: Path, path: str) -> None:
    """Remove a guest's path with everything below it. Of a link, only the link is removed."""
    place = follow(path, on_disk(tree), last=False)
    if not place or is_mounted(place):
        raise LayerConflict(f"{path} cannot be removed: it is /{place}, which the guest mounts")
    remove_tree(tree / place)


def remove_tree(path: Path) -> None:
    """Remove a file, a link, or a folder with everything below it, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def matches(tree: Path, pattern: str) -> Iterator[Path]:
    """Yield the paths below `tree` that match a glob, sorted. Links are not followed."""
    yield from sorted(set(_matches(tree, [part for part in pattern.split("/") if part])))


def _matches(folder: Path, parts: list[str]) -> Iterator[Path]:
    if not parts or folder.is_symlink() or not folder.is_dir():
        return
    first, rest = parts[0], parts[1:]
    for path in _entries(folder):
        if first == "**":
            yield from _matches(path, parts)
            if not rest:
                yield path
        elif fnmatchcase(path.name, first):
            if rest:
                yield from _matches(path, rest)
            else:
                yield path
    if first == "**" and rest:
        yield from _matches(folder, rest)


def _entries(folder: Path) -> Iterable[Path]:
    return list(folder.iterdir())

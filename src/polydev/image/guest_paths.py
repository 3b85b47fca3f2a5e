"""Paths of a guest, resolved inside its tree and never on the build machine. Pure.

The links of a tree mean something else on the build machine than in the guest: `/var/run` leads to
`/run`, which the build machine has too. So a guest's path is never joined to a folder and opened as
it is: `follow` first returns where it leads, as after a chroot.

`landings` does the same for a whole tree that is merged into another one. A folder that meets a
link to a folder goes where the link leads, as with dpkg. A file or a link replaces a file or a
link. Anything else would change what the guest finds there, and raises LayerConflict.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MOST_LINKS = 40
# The guest and the build mount over these folders, so files in them are never seen.
MOUNTED = ("dev", "proc", "sys")


@dataclass(frozen=True)
class Node:
    # The guest and the build mount over these folders, so files below them are never seen.

    kind: Literal["dir", "file", "link", "gone"]
    target: str = ""


FOLDER = Node("dir")
# Returns what is at a path from the tree's root, without links in it and without leading slash.
NodeAt = Callable[[str], Node | None]


class LayerConflict(Exception):
    """A path of a layer that conflicts with what the image has there."""


def on_disk(tree: Path) -> NodeAt:
    """Return the lookup of a tree on this machine's disk."""

    def at(path: str) -> Node | None:
        try:
            mode = os.lstat(tree / path).st_mode
            if stat.S_ISLNK(mode):
                return Node("link", os.readlink(tree / path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return FOLDER if stat.S_ISDIR(mode) else Node("file")

    return at


def follow(path: str, at: NodeAt, *, last: bool = True) -> str:
    """Return where `path` leads in a tree: a path from the tree's root without any link.

    As after a chroot, absolute links start at the tree's root, and `..` does not leave it. Parts
    that do not exist stay as they are. If `last` is false, a link at the end is not followed.
    Raises OSError (ELOOP) for links that lead to each other.
    """
    left = deque(_parts(path))
    done: list[str] = []
    links = 0
    while left:
        part = left.popleft()
        if part == "..":
            done = done[:-1]
            continue
        node = at("/".join([*done, part])) if left or last else None
        if node is None or node.kind != "link":
            done.append(part)
            continue
        links += 1
        if links > MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), f"/{path.lstrip('/')}")
        if node.target.startswith("/"):
            done = []
        left.extendleft(reversed(_parts(node.target)))
    return "/".join(done)


def in_tree(tree: Path, path: str, *, last: bool = True) -> Path:
    """Return the path on this machine of a guest's path in the tree at `tree`."""
    return tree / follow(path, on_disk(tree), last=last)


def is_mounted(path: str) -> bool:
    """Whether the guest mounts a filesystem over this path or above it."""
    return next(iter(_parts(path)), "") in MOUNTED


def landings(
    upper: Mapping[str, Node], below: NodeAt, seen: Callable[[str], bool] = lambda path: False
) -> dict[str, str]:
    """Return the place of each path of an upper tree on the tree below it.

    `seen` tells which paths below the upper tree was made on top of: there it replaces files on
    purpose. Raises LayerConflict.
    """
    landed = {"": ""}
    sources: dict[str, str] = {}

    def at(path: str) -> Node | None:
        return below(path) or upper.get(path)

    for path in sorted(upper, key=lambda path: path.split("/")):
        parent, _, name = path.rpartition("/")
        place = f"{landed[parent]}/{name}".lstrip("/")
        node, there = upper[path], below(place)
        if there is not None and node.kind != "gone" and not seen(place):
            place = _settled(path, place, node, there, at)
        if node.kind != "dir":
            if is_mounted(place):
                raise LayerConflict(
                    f"{_shown(path, place)} lies where the guest mounts /{place.split('/')[0]}"
                )
            if place in sources:
                raise LayerConflict(
                    f"/{sources[place]} and /{path} of the layer are both /{place} in the image"
                )
            sources[place] = path
        landed[path] = place
    return landed


def _settled(path: str, place: str, node: Node, there: Node, at: NodeAt) -> str:
    """Return the place of a node that meets another one. Raises LayerConflict."""
    goal = _goal(place, at)
    leads_to_folder = goal is not None and at(goal) == FOLDER
    if node.kind == "dir":
        if leads_to_folder or (
            there.kind == "link" and goal is not None and _can_be_made(goal, at)
        ):
            assert goal is not None
            return goal
        raise LayerConflict(
            f"{_shown(path, place)} is a folder in the layer, and in the image {_words(there)}"
        )
    if leads_to_folder and not (node.kind == "link" and _goal_of_link(place, node, at) == goal):
        mine, theirs = _words(node), _words(there)
        raise LayerConflict(
            f"{_shown(path, place)} is {mine} in the layer, and in the image {theirs}"
        )
    return place


def _goal(path: str, at: NodeAt) -> str | None:
    """Return where a path leads, or None if its links form a circle."""
    try:
        return follow(path, at)
    except OSError:
        return None


def _goal_of_link(place: str, link: Node, at: NodeAt) -> str | None:
    return _goal(link.target if link.target[:1] == "/" else f"{place}/../{link.target}", at)


def _can_be_made(folder: str, at: NodeAt) -> bool:
    """Whether a folder that does not exist yet can be made: only folders are on its path."""
    parts = folder.split("/")
    ancestors = (at("/".join(parts[:count])) for count in range(1, len(parts) + 1))
    return bool(folder) and all(node in (None, FOLDER) for node in ancestors)


def _words(node: Node) -> str:
    kinds = {"dir": "a folder", "file": "a file", "gone": "nothing"}
    return kinds.get(node.kind) or f"a link to {node.target}"


def _shown(path: str, place: str) -> str:
    return f"/{path}" if path == place else f"/{path} (/{place} in the image)"


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]

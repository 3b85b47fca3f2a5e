"""Stack built layers as overlayfs shows them, so that no layer changes another one by accident.

A layer that only has files is made without the layers below it, and a layer that is made inside
others knows only those. On layers that it does not know, its files go where links lead, folders
keep the attributes that they have there, and it hides no file. Files of layers that it knows, it
replaces on purpose.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from polydev.image import file_listing, reproducible
from polydev.image.file_listing import OPAQUE_XATTR, Entry
from polydev.image.guest_paths import FOLDER, LayerConflict, Node, landings
from polydev.image.layer_cache import BuiltLayer, refused
from polydev.image.tree_merge import arrange, link_or_copy
from polydev.image_layout import TREE

FOLDER_MODE = 0o755


@dataclass
class Stack:
    """Trees, lowest first, and their merged content: entries and their first owners, by path."""

    trees: list[Path] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)

    def listing(self) -> list[Entry]:
        return [self.entries[path] for path in sorted(self.entries)]

    def add(self, place: Path, entries: Sequence[Entry], owner: str) -> None:
        folders = {path for path, entry in self.entries.items() if entry["type"] == "dir"}
        file_listing.lay_listing(self.entries, entries)
        laid = {entry["path"]: entry["type"] for entry in entries}
        self.owners = {
            path: owner
            if path in laid and not (laid[path] == "dir" and path in folders)
            else self.owners[path]
            for path in self.entries
        }
        self.trees.append(place)


def stack(layers: Iterable[BuiltLayer], scratch: Path, epoch: int) -> Stack:
    """Stack the layers. Layers that do not fit as they are, are rearranged below `scratch`.

    Raises BuildError with the layer and the path that conflicts.
    """
    stacked = Stack()
    for built in layers:
        entries = file_listing.read_listing(built.folder / TREE)
        place = built.tree
        try:
            change = _change(built, entries, stacked) if stacked.trees else None
        except LayerConflict as clash:
            raise refused(built.plan, str(clash)) from clash
        if change is not None:
            place = scratch / built.plan.name
            scratch.mkdir(parents=True, exist_ok=True)
            _rearrange(built.tree, place, change, stacked, epoch)
            entries = list(file_listing.list_tree(place))
        stacked.add(place, entries, built.plan.id)
    return stacked


@dataclass(frozen=True)
class _Change:
    """The changes that a layer's tree needs to be stacked.

    landed     the place of each path
    opaque     folders that still hide what is below them
    kept       folders that take the attributes of the folder below
    """

    landed: Mapping[str, str]
    opaque: frozenset[str]
    kept: frozenset[str]


def _change(built: BuiltLayer, entries: Sequence[Entry], below: Stack) -> _Change | None:
    """Return how a layer must change to fit on those below; None if it fits as it is.

    Raises LayerConflict.
    """
    inside = {plan.id for plan in built.plan.below}
    seen = {path for path, owner in below.owners.items() if owner in inside}
    upper = {_relative(entry): _node(entry) for entry in entries}

    def at(path: str) -> Node | None:
        entry = below.entries.get(f"/{path}")
        return _node(entry) if entry else None

    landed = landings(upper, at, lambda path: f"/{path}" in seen)
    opaque = {_relative(entry) for entry in entries if entry.get("opaque")}
    hiding = frozenset(path for path in opaque if landed[path] == path) - _revealed(
        opaque, below, seen
    )
    kept = frozenset(
        landed[_relative(entry)]
        for entry in entries
        if entry["type"] == "dir" and _has_others_attributes(entry, landed, below, seen)
    )
    moves = any(path != place for path, place in landed.items())
    return _Change(landed, hiding, kept) if moves or kept or hiding != opaque else None


def _revealed(opaque: set[str], below: Stack, seen: set[str]) -> frozenset[str]:
    """Return the opaque folders of a layer that hide only files of layers that it does not know.

    Raises LayerConflict for a folder that also hides files that the layer knows.
    """
    hides: dict[str, set[bool]] = {}
    for path, entry in below.entries.items():
        if opaque and (entry["type"] != "dir" or path not in seen):
            for parent in _parents(path):
                if parent in opaque:
                    hides.setdefault(parent, set()).add(path in seen)
    for folder, both in hides.items():
        if both == {True, False}:
            raise LayerConflict(
                f"/{folder} was replaced by the layer, but other layers have files there"
            )
    return frozenset(folder for folder, both in hides.items() if both == {False})


def _has_others_attributes(
    entry: Entry, landed: Mapping[str, str], below: Stack, seen: set[str]
) -> bool:
    place = f"/{landed[_relative(entry)]}"
    there = below.entries.get(place)
    if there is None or there["type"] != "dir" or place in seen:
        return False
    return any(there[key] != entry[key] for key in ("mode", "uid", "gid"))


def _rearrange(source: Path, to: Path, change: _Change, below: Stack, epoch: int) -> None:
    arrange(source, change.landed, to, link_or_copy)
    for path in change.opaque:
        os.setxattr(to / path, OPAQUE_XATTR, b"y")
    own = set(change.landed.values())
    for name, _, _ in os.walk(to, topdown=False):
        folder = Path(name)
        place = str(folder.relative_to(to)) if folder != to else ""
        there = below.entries.get(f"/{place}")
        if place in own and place not in change.kept:
            continue
        if there is None:  # a link leads to a folder that no layer has
            folder.chmod(FOLDER_MODE)
            continue
        os.chown(folder, there["uid"], there["gid"])
        folder.chmod(there["mode"])
        if place not in own:
            os.utime(folder, (there["mtime"], there["mtime"]))
    reproducible.clamp_times(to, epoch)


def _relative(entry: Entry) -> str:
    return str(entry["path"]).lstrip("/")


def _node(entry: Entry) -> Node:
    if entry["type"] == "dir":
        return FOLDER
    if entry["type"] == "symlink":
        return Node("link", entry["target"])
    return Node("gone" if entry["type"] == file_listing.WHITEOUT else "file")


def _parents(path: str) -> list[str]:
    parts = path.strip("/").split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]

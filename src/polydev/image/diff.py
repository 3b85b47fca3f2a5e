"""What differs between two images: packages, sizes, layers, and files where both list them.

A listing is `tree.jsonl.gz` beside the record: one JSON object a line for each path of the
root filesystem, in the order of the paths as plain strings. Two listings are merged as they
are read, so their size does not matter.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from polydev.errors import ImageError
from polydev.image.record import ROOTFS, TREE, ImageRecord, Model, Package

Row = dict[str, Any]

MTIME = "mtime"


class PackageChange(Model):
    """`old` is None for a package that was added, `new` for one that was removed."""

    kind: str
    name: str
    old: str | None
    new: str | None


class LayerChange(Model):
    """A layer whose id is another; `old` or `new` is None where one image has no such layer."""

    name: str
    old: str | None
    new: str | None


class FileChange(Model):
    """A path that both images have; `fields` names what differs, such as mode or sha256."""

    path: str
    fields: list[str]


class TreeDiff(Model):
    added: list[str]
    removed: list[str]
    changed: list[FileChange]


class ImageDiff(Model):
    """The way from image `old` to image `new`; sizes in bytes, less than 0 where it shrank.

    `files` is None when an image has no listing of its files.
    """

    old: str
    new: str
    packages_added: list[PackageChange]
    packages_removed: list[PackageChange]
    packages_changed: list[PackageChange]
    content_change_bytes: int
    rootfs_allocated_change_bytes: int
    layers_changed: list[LayerChange]
    files: TreeDiff | None

    def as_text(self) -> str:
        """For people: what changed, a line each; sizes in MB."""
        lines = [f"{self.old[:12]} → {self.new[:12]}"]
        lines += [f"layer {layer.name}" for layer in self.layers_changed]
        lines += [f"+ {each.kind} {each.name} {each.new}" for each in self.packages_added]
        lines += [f"- {each.kind} {each.name} {each.old}" for each in self.packages_removed]
        lines += [
            f"~ {each.kind} {each.name} {each.old} → {each.new}" for each in self.packages_changed
        ]
        if self.files is not None:
            lines += [f"+ {path}" for path in self.files.added]
            lines += [f"- {path}" for path in self.files.removed]
            lines += [f"~ {each.path} ({', '.join(each.fields)})" for each in self.files.changed]
        lines.append(f"content {self.content_change_bytes / 1e6:+,.1f} MB")
        return "\n".join(lines)


def diff(old: ImageRecord, new: ImageRecord, files: TreeDiff | None = None) -> ImageDiff:
    """Compare two records; `files` is what `tree_diff` found, if it was asked."""
    packages = _package_changes(old.packages, new.packages)
    return ImageDiff(
        old=old.digest,
        new=new.digest,
        packages_added=[each for each in packages if each.old is None],
        packages_removed=[each for each in packages if each.new is None],
        packages_changed=[each for each in packages if None not in (each.old, each.new)],
        content_change_bytes=new.content_bytes - old.content_bytes,
        rootfs_allocated_change_bytes=_rootfs_bytes(new) - _rootfs_bytes(old),
        layers_changed=_layer_changes(old, new),
        files=files,
    )


def _rootfs_bytes(record: ImageRecord) -> int:
    return record.files[ROOTFS].allocated_bytes


def _package_changes(old: Iterable[Package], new: Iterable[Package]) -> list[PackageChange]:
    # A name may be there in several versions (npm): those that both images have cancel out.
    before, after = _versions(old), _versions(new)
    return [
        PackageChange(kind=kind, name=name, old=gone, new=come)
        for kind, name in sorted(before.keys() | after.keys())
        for gone, come in zip_longest(
            sorted(before.get((kind, name), set()) - after.get((kind, name), set())),
            sorted(after.get((kind, name), set()) - before.get((kind, name), set())),
        )
    ]


def _versions(packages: Iterable[Package]) -> dict[tuple[str, str], set[str]]:
    versions: dict[tuple[str, str], set[str]] = {}
    for package in packages:
        versions.setdefault((package.kind, package.name), set()).add(package.version)
    return versions


def _layer_changes(old: ImageRecord, new: ImageRecord) -> list[LayerChange]:
    before = {layer.name: layer.id for layer in old.layers}
    after = {layer.name: layer.id for layer in new.layers}
    return [
        LayerChange(name=name, old=before.get(name), new=after.get(name))
        for name in {**after, **before}
        if before.get(name) != after.get(name)
    ]


def tree_diff(old: Path, new: Path) -> TreeDiff | None:
    """Compare the file listings in two image folders; None when either has none.

    A file that differs in its time alone has not changed: builds of another epoch touch all.
    Raises ImageError, naming file and line, for a listing that is damaged or out of order.
    """
    if not ((old / TREE).is_file() and (new / TREE).is_file()):
        return None
    added: list[str] = []
    removed: list[str] = []
    changed: list[FileChange] = []
    for before, after in _pairs(_rows(old / TREE), _rows(new / TREE)):
        if before is None and after is not None:
            added.append(_shown(after))
        elif after is None and before is not None:
            removed.append(_shown(before))
        elif before is not None and after is not None and before != after:
            names = sorted((before.keys() | after.keys()) - {MTIME})
            fields = [name for name in names if before.get(name) != after.get(name)]
            if fields:
                changed.append(FileChange(path=_shown(after), fields=fields))
    return TreeDiff(added=added, removed=removed, changed=changed)


def _shown(row: Row) -> str:
    """A path as text that can be printed, with bytes that are no UTF-8 written out."""
    path: str = row["path"]
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _pairs(old: Iterator[Row], new: Iterator[Row]) -> Iterator[tuple[Row | None, Row | None]]:
    """Both listings side by side; a path that one of them lacks has None there."""
    before, after = next(old, None), next(new, None)
    while before is not None or after is not None:
        if after is None or (before is not None and before["path"] < after["path"]):
            yield before, None
            before = next(old, None)
        elif before is None or after["path"] < before["path"]:
            yield None, after
            after = next(new, None)
        else:
            yield before, after
            before, after = next(old, None), next(new, None)


def _rows(listing: Path) -> Iterator[Row]:
    last, number = "", 0
    try:
        with gzip.open(listing, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                row: Row = json.loads(line)
                path: str = row["path"]
                if number > 1 and path <= last:
                    raise ValueError(f"{path} comes after {last}, which is out of order")
                last = path
                yield row
    except (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError) as error:
        raise ImageError(
            f"cannot read the file listing {listing}, line {number}: {error}",
            "build the image again, or compare without its files",
        ) from error

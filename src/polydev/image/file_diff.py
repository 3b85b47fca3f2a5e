"""Compare the files of two images by their listings.

A listing is `tree.jsonl.gz` beside the record: one line of JSON for each path of the root
filesystem, sorted by path as plain strings. Two listings are compared while they are read, so their
size does not matter.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polydev.errors import ImageError
from polydev.image_diff import FileChange, TreeDiff
from polydev.image_layout import TREE

Row = dict[str, Any]

MTIME = "mtime"


def tree_diff(old: Path, new: Path) -> TreeDiff | None:
    """Compare the file listings in two image folders; return None if one has no listing.

    Files that differ in their time alone are unchanged: another epoch changes all times. Raises
    ImageError, with file and line, if a listing is damaged or not sorted.
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
    """Return a path as printable text, with bytes that are not UTF-8 escaped."""
    path: str = row["path"]
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _pairs(old: Iterator[Row], new: Iterator[Row]) -> Iterator[tuple[Row | None, Row | None]]:
    """Yield the rows of both listings by path, with None where a listing lacks the path."""
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
                    raise ValueError(f"not sorted: {path} follows {last}")
                last = path
                yield row
    except (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError) as error:
        raise ImageError(
            f"cannot read the file listing {listing}, line {number}: {error}",
            "build the image again: ./inv golden.build",
        ) from error

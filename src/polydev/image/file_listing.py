"""Lists of the files in a layer's tree: made, written, read, and those of several layers merged."""

from __future__ import annotations

import gzip
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from polydev.file_checksum import file_sha256
from polydev.image.tree_merge import walk

Entry = dict[str, Any]

WHITEOUT = "whiteout"
OPAQUE_XATTR = "trusted.overlay.opaque"


def list_tree(tree: Path) -> Iterator[Entry]:
    """Yield an entry for each path below `tree`, sorted within each folder.

    Keys: path (from "/"), type (file, dir, symlink, whiteout, other), mode, uid, gid, mtime
    (seconds), size (bytes); sha256 of files, target of symlinks, opaque for folders that hide
    the layers below. Hard links to one file are read once.
    """
    hashes: dict[tuple[int, int], str] = {}
    for path in walk(tree):
        info = os.lstat(path)
        entry: Entry = {
            "path": "/" + str(path.relative_to(tree)),
            "type": type_of(info),
            "mode": stat.S_IMODE(info.st_mode),
            "uid": info.st_uid,
            "gid": info.st_gid,
            "mtime": int(info.st_mtime),
            "size": info.st_size if stat.S_ISREG(info.st_mode) else 0,
        }
        if stat.S_ISREG(info.st_mode):
            key = (info.st_dev, info.st_ino)
            if key not in hashes:
                hashes[key] = file_sha256(path)
            entry["sha256"] = hashes[key]
        elif stat.S_ISLNK(info.st_mode):
            entry["target"] = os.readlink(path)
        elif stat.S_ISDIR(info.st_mode) and _is_opaque(path):
            entry["opaque"] = True
        yield entry


def merge_listings(layers: Iterable[Iterable[Entry]]) -> list[Entry]:
    """Return the entries that stacked layers (lowest first) show as one tree, sorted by path."""
    merged: dict[str, Entry] = {}
    for layer in layers:
        lay_listing(merged, layer)
    return [merged[path] for path in sorted(merged)]


def lay_listing(merged: dict[str, Entry], layer: Iterable[Entry]) -> None:
    """Add a layer on top of `merged`, which has the entries of a tree by path."""
    for entry in layer:
        path = entry["path"]
        hides = entry["type"] == WHITEOUT or entry.get("opaque")
        replaces = path in merged and merged[path]["type"] == "dir" != entry["type"]
        if hides or replaces:
            below = path + "/"
            for old in [known for known in merged if known == path or known.startswith(below)]:
                del merged[old]
        if entry["type"] != WHITEOUT:
            merged[path] = {key: entry[key] for key in entry if key != "opaque"}


def write_listing(entries: Iterable[Mapping[str, Any]], file: Path) -> None:
    """Write JSON lines, compressed without a time stamp: equal entries give equal bytes."""
    with file.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed:
        for entry in entries:
            packed.write(json.dumps(entry, sort_keys=True).encode() + b"\n")


def read_listing(file: Path) -> list[Entry]:
    with gzip.open(file, "rt") as lines:
        return [json.loads(line) for line in lines]


def allocated_bytes(path: Path) -> int:
    """Return the disk space that a file takes, without its holes."""
    return path.stat().st_blocks * 512


def type_of(info: os.stat_result) -> str:
    mode = info.st_mode
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "dir"
    if stat.S_ISLNK(mode):
        return "symlink"
    return WHITEOUT if stat.S_ISCHR(mode) and info.st_rdev == 0 else "other"


def _is_opaque(path: Path) -> bool:
    try:
        return os.getxattr(path, OPAQUE_XATTR, follow_symlinks=False) == b"y"
    except OSError:
        return False

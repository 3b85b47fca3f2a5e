"""A layer's tree on disk: make it reproducible, list its files, merge the lists of layers."""

from __future__ import annotations

import gzip
import json
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from polydev.disk import file_sha256
from polydev.image.tree_merge import matches, walk

Entry = dict[str, Any]

WHITEOUT = "whiteout"
OPAQUE_XATTR = "trusted.overlay.opaque"

# Files in which package scripts note the time or the machine that they ran on.
SCRUBBED = (
    "etc/.pwd.lock",
    "etc/group-",
    "etc/gshadow-",
    "etc/passwd-",
    "etc/shadow-",
    "etc/subgid-",
    "etc/subuid-",
    "run/*",
    "tmp/*",
    "var/cache/apt/*",
    "var/cache/debconf/*-old",
    "var/cache/fontconfig/*",
    "var/cache/ldconfig/aux-cache",
    "var/lib/apt/lists/*",
    "var/lib/apt/extended_states",
    "var/lib/dpkg/*-old",
    "var/lib/dpkg/lock*",
    "var/lib/dpkg/triggers/Lock",
    "var/lib/systemd/catalog/database",
    "var/lib/systemd/random-seed",
    "var/lib/dbus/machine-id",
    "var/log/*.log",
    "var/log/apt/*",
    "var/log/[bw]tmp",
    "var/log/faillog",
    "var/log/lastlog",
)


def scrub(tree: Path, kept: Collection[str] = ()) -> None:
    """Remove files that would differ between two builds of the same inputs.

    `kept` are paths that come from the inputs themselves. Links are not followed, so nothing
    outside `tree` changes. Whiteouts stay, since they hide files of the layers below.
    """
    for pattern in SCRUBBED:
        for path in matches(tree, pattern):
            _scrub(path, tree, kept)


def _scrub(path: Path, tree: Path, kept: Collection[str]) -> None:
    info = os.lstat(path)
    if stat.S_ISDIR(info.st_mode):
        for below in sorted(path.iterdir()):
            _scrub(below, tree, kept)
        if not any(path.iterdir()) and str(path.relative_to(tree)) not in kept:
            path.rmdir()
    elif _type(info) != WHITEOUT and str(path.relative_to(tree)) not in kept:
        path.unlink()


def clamp_times(tree: Path, epoch: int) -> None:
    """Set the time of everything newer than `epoch` (seconds) to `epoch`."""
    for path in [tree, *walk(tree)]:
        if os.lstat(path).st_mtime > epoch:
            os.utime(path, (epoch, epoch), follow_symlinks=False)


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
            "type": _type(info),
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


def _type(info: os.stat_result) -> str:
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

"""Files, links and folders as values: kind, mode, owner and a hash of the content."""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 20
OTHER_KINDS = {
    stat.S_IFSOCK: "socket",
    stat.S_IFIFO: "fifo",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


@dataclass(frozen=True)
class PathEntry:
    """One path. `kind` is file, link, folder or absent, else one of OTHER_KINDS.

    `sha256` belongs to files, `target` to links. A link has no mode of its own.
    """

    path: Path
    kind: str
    mode: int = 0
    owner: str = ""
    group: str = ""
    mtime_ns: int = 0
    size_bytes: int = 0
    sha256: str = ""
    target: str = ""

    def as_dict(self) -> dict[str, object]:
        """Return the entry for a manifest, which `entry_from` reads."""
        if self.kind == "absent":
            return {"path": str(self.path), "kind": self.kind}
        document = self.as_listed() | {"kind": self.kind}
        if self.kind == "file":
            document |= {"mtimeNs": self.mtime_ns, "sizeBytes": self.size_bytes}
        return document

    def as_listed(self) -> dict[str, object]:
        """Return what must be equal for the path to count as unchanged."""
        document: dict[str, object] = {
            "path": str(self.path),
            "mode": f"{self.mode:04o}",
            "owner": self.owner,
            "group": self.group,
        }
        if self.kind == "file":
            return document | {"sha256": self.sha256}
        if self.kind == "link":
            return document | {"target": self.target}
        return document | {"kind": self.kind}


def entry_from(document: dict[str, Any]) -> PathEntry:
    """Return the entry that a document describes. Raises KeyError or ValueError."""
    return PathEntry(
        path=Path(document["path"]),
        kind=document["kind"],
        mode=int(document.get("mode", "0"), 8),
        owner=document.get("owner", ""),
        group=document.get("group", ""),
        mtime_ns=document.get("mtimeNs", 0),
        size_bytes=document.get("sizeBytes", 0),
        sha256=document.get("sha256", ""),
        target=document.get("target", ""),
    )


def entry_of(path: Path) -> PathEntry:
    """Read the entry at `path`; a link is not followed."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return PathEntry(path, "absent")
    mode = stat.S_IMODE(status.st_mode)
    owner, group = user_name(status.st_uid), group_name(status.st_gid)
    if stat.S_ISLNK(status.st_mode):
        return PathEntry(path, "link", 0o777, owner, group, target=os.readlink(path))
    if stat.S_ISDIR(status.st_mode):
        return PathEntry(path, "folder", mode, owner, group)
    if not stat.S_ISREG(status.st_mode):
        kind = OTHER_KINDS.get(stat.S_IFMT(status.st_mode), "other")
        return PathEntry(path, kind, mode, owner, group)
    return PathEntry(
        path,
        "file",
        mode,
        owner,
        group,
        mtime_ns=status.st_mtime_ns,
        size_bytes=status.st_size,
        sha256=file_sha256(path),
    )


def entries_below(roots: Iterable[Path]) -> list[PathEntry]:
    """Read each root and everything in it, sorted by path, folders before their contents."""
    found: dict[Path, PathEntry] = {}
    waiting = list(roots)
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found[path] = entry = entry_of(path)
        if entry.kind == "folder":
            waiting += path.iterdir()
    return [found[path] for path in sorted(found)]


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def is_below(path: Path, roots: Iterable[Path]) -> bool:
    """Whether `path` is one of `roots` or inside one."""
    return any(path == root or root in path.parents for root in roots)


@cache
def user_name(uid: int) -> str:
    """Return the user's name; `#` and the number if there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


@cache
def group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"#{gid}"


def uid_of(name: str) -> int:
    """Return the user's id. Raises KeyError if this host has no such user."""
    return int(name[1:]) if name.startswith("#") else pwd.getpwnam(name).pw_uid


def gid_of(name: str) -> int:
    return int(name[1:]) if name.startswith("#") else grp.getgrnam(name).gr_gid

"""Find the process that holds a lock of apt or dpkg, without taking the lock."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from polydev.hosttool.paths import Paths

# struct flock: type, whence, start, length, process
FLOCK = "hhqqi"


def locks(paths: Paths) -> list[Path]:
    """Return the files that apt and dpkg lock, in their order."""
    names = ("lock-frontend", "lock")
    return [
        *(paths.dpkg / name for name in names),
        paths.apt_lists / "lock",
        paths.apt_archives / "lock",
    ]


def held(paths: Paths) -> dict[str, object]:
    """Return `held`: each lock that a process has, with the process's name and PID."""
    return {"held": [*_held(paths)]}


def _held(paths: Paths) -> Iterator[dict[str, object]]:
    for path in locks(paths):
        if pid := _holder(path):
            yield {"lock": str(path), "pid": pid, "name": _name(pid)}


def _holder(path: Path) -> int:
    """Return the process that has the lock; 0 if no process has it, or it ended meanwhile."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        asked = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, *_, pid = struct.unpack(FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    finally:
        os.close(descriptor)
    return 0 if kind == fcntl.F_UNLCK else int(pid)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "a process"

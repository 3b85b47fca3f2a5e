"""A recorder of the order in which changes reach the disk: what a power cut may undo.

Names that are given by a rename must stand for what is on the disk already, and the folder that
has the name must be brought to the disk afterwards, as it must be for links and after removals. So
must a file be whose mode, owner or times were changed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

Inode = tuple[int, int]
# Names of what is about to be removed: they claim nothing of its content.
OUT_OF_SIGHT = (".old-", ".gone-")


def _inode(info: os.stat_result) -> Inode:
    return info.st_dev, info.st_ino


class DiskWork:
    """The synced files, and each rename with the faults found at that moment."""

    def __init__(self, spared: frozenset[str]) -> None:
        self.spared = spared
        self.synced: set[Inode] = set()
        self.unsynced_content: list[str] = []
        self.names_pending: dict[Inode, str] = {}
        self.rights_pending: dict[Inode, str] = {}
        self.renames = 0

    def has_synced(self, *paths: Path) -> bool:
        return {_inode(path.stat()) for path in paths} <= self.synced

    def faults(self) -> list[str]:
        names = self.names_pending.values()
        late = [f"the name {name} was not brought to the disk" for name in names]
        rights = self.rights_pending.values()
        late += [f"mode or owner of {name} was not brought to the disk" for name in rights]
        return [*self.unsynced_content, *late]

    # Each is told what was done, just after it.

    def sync(self, descriptor: int) -> None:
        inode = _inode(os.fstat(descriptor))
        self.synced.add(inode)
        self.names_pending.pop(inode, None)
        self.rights_pending.pop(inode, None)

    def rename(self, was: Any, now: Any) -> None:
        source, target = Path(was), Path(now)
        self.renames += 1
        if target.name.startswith(OUT_OF_SIGHT) or target.name.endswith(".gone"):
            # It could come back without its content.
            self._name(source, f", which became {target.name},")
            return
        self._name(target)
        below = target.rglob("*") if target.is_dir() and not target.is_symlink() else ()
        for path in [target, *below]:
            info = path.lstat()
            counts = not stat.S_ISLNK(info.st_mode) and path.name not in self.spared
            if counts and _inode(info) not in self.synced:
                self.unsynced_content.append(f"{path} before it got this name from {source}")

    def link(self, _source: Any, target: Any, *_how: Any, **_more: Any) -> None:
        self._name(Path(target))

    def unlink(self, target: Any, **how: Any) -> None:
        # With `how` it is in a folder that is removed as a whole.
        if not how and Path(target).name not in self.spared:
            self._name(Path(target), ", which is gone,")

    def change(self, path: Any, *_rights: Any, **_how: Any) -> None:
        info = Path(path).lstat()
        if stat.S_ISREG(info.st_mode):
            self.rights_pending[_inode(info)] = str(path)

    def _name(self, path: Path, what: str = "") -> None:
        self.names_pending[_inode(path.parent.stat())] = f"{path}{what}"


@contextmanager
def watched_disk(
    monkeypatch: pytest.MonkeyPatch, spared: frozenset[str] = frozenset()
) -> Iterator[DiskWork]:
    """Record syncs, names and rights; files whose names are `spared` need not be durable here."""
    work = DiskWork(spared)
    told: dict[str, Callable[..., None]]
    told = {"fsync": work.sync, "rename": work.rename, "replace": work.rename}
    told |= {"symlink": work.link, "link": work.link, "unlink": work.unlink}
    told |= dict.fromkeys(("chmod", "chown", "utime"), work.change)
    with monkeypatch.context() as patch:
        for name, tell in told.items():
            patch.setattr(os, name, _then(getattr(os, name), tell))
        yield work


def _then(real: Callable[..., None], tell: Callable[..., None]) -> Callable[..., None]:
    def call(*words: Any, **how: Any) -> None:
        real(*words, **how)
        tell(*words, **how)

    return call

"""A recorder of what is brought to the disk, in which order: what a power cut may undo.

Names that are given by a rename must stand for what is on the disk already, and the folder that
has the name must be brought to the disk afterwards, as it must be for links. So must a file be
whose mode, owner or times were changed.
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
    """What was synced, and each rename with what was wrong at its moment."""

    def __init__(self) -> None:
        self.synced: set[Inode] = set()
        self.unsynced_content: list[str] = []
        self.names_pending: dict[Inode, str] = {}
        self.rights_pending: dict[Inode, str] = {}
        self.renames = 0

    def sync(self, descriptor: int) -> None:
        inode = _inode(os.fstat(descriptor))
        self.synced.add(inode)
        self.names_pending.pop(inode, None)
        self.rights_pending.pop(inode, None)

    def rename(self, source: Path, target: Path, spared: frozenset[str]) -> None:
        self.renames += 1
        if target.name.startswith(OUT_OF_SIGHT):
            # It could come back without its content.
            self.names_pending[_inode(source.parent.stat())] = f"{target}, no longer {source}"
            return
        self.names_pending[_inode(target.parent.stat())] = str(target)
        below = source.rglob("*") if source.is_dir() and not source.is_symlink() else ()
        for path in [source, *below]:
            info = path.lstat()
            counts = not stat.S_ISLNK(info.st_mode) and path.name not in spared
            if counts and _inode(info) not in self.synced:
                self.unsynced_content.append(f"{path} before it became {target}")

    def link(self, target: Path) -> None:
        self.names_pending[_inode(target.parent.stat())] = str(target)

    def change(self, path: Path) -> None:
        info = path.lstat()
        if stat.S_ISREG(info.st_mode):
            self.rights_pending[_inode(info)] = str(path)

    def has_synced(self, *paths: Path) -> bool:
        return {_inode(path.stat()) for path in paths} <= self.synced

    def faults(self) -> list[str]:
        names = self.names_pending.values()
        late = [f"the name {name} was not brought to the disk" for name in names]
        rights = self.rights_pending.values()
        late += [f"mode or owner of {name} was not brought to the disk" for name in rights]
        return [*self.unsynced_content, *late]


@contextmanager
def watched_disk(
    monkeypatch: pytest.MonkeyPatch, spared: frozenset[str] = frozenset()
) -> Iterator[DiskWork]:
    """Record syncs and renames; files whose names are `spared` are made durable by others."""
    work = DiskWork()
    real_sync, real_rename, real_replace = os.fsync, os.rename, os.replace
    real_symlink, real_link = os.symlink, os.link

    def sync(descriptor: int) -> None:
        real_sync(descriptor)
        work.sync(descriptor)

    def rename(source: Any, target: Any) -> None:
        before = Path(source)
        # Looked at before: afterwards the name is another one.
        work.rename(before, Path(target), spared)
        real_rename(source, target)

    def replace(source: Any, target: Any) -> None:
        work.rename(Path(source), Path(target), spared)
        real_replace(source, target)

    def symlink(text: Any, target: Any, is_folder: bool = False) -> None:
        real_symlink(text, target, is_folder)
        work.link(Path(target))

    def link(source: Any, target: Any, **how: Any) -> None:
        real_link(source, target, **how)
        work.link(Path(target))

    def changing(real: Callable[..., None]) -> Callable[..., None]:
        def change(path: Any, *rights: Any, **how: Any) -> None:
            real(path, *rights, **how)
            work.change(Path(path))

        return change

    with monkeypatch.context() as patch:
        for name in ("chmod", "chown", "utime"):
            patch.setattr(os, name, changing(getattr(os, name)))
        patch.setattr(os, "fsync", sync)
        patch.setattr(os, "rename", rename)
        patch.setattr(os, "replace", replace)
        patch.setattr(os, "symlink", symlink)
        patch.setattr(os, "link", link)
        yield work

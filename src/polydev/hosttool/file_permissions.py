"""Permissions of files that a deployment does not write itself.

Root and the controller trust some folders, so only root may write there; and only the controller
may read what it writes. Files and folders that a deployment declares are compared by it.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from polydev.hosttool.errors import HostError
from polydev.hosttool.paths import Paths

ROOT_ID = 0


@dataclass(frozen=True)
class ProtectedTree:
    """A folder with its contents, to which only root and its `owner` may write.

    Everything in a private one belongs to the owner, and only the owner may read it.
    """

    path: Path
    owner: str = "root"
    is_private: bool = False

    @property
    def owner_id(self) -> int:
        """Return the owner's id; root's if there is no such user."""
        try:
            return pwd.getpwnam(self.owner).pw_uid
        except KeyError:
            return ROOT_ID

    def mode_for(self, state: os.stat_result) -> int:
        """Return the mode that a file or folder should have, given its present one."""
        mode = stat.S_IMODE(state.st_mode)
        if self.is_private:
            return 0o700 if stat.S_ISDIR(state.st_mode) else mode & 0o700 | 0o600
        of_a_group = mode & stat.S_IWGRP and state.st_gid != ROOT_ID
        is_open = of_a_group or mode & stat.S_IWOTH or not self.may_own(state.st_uid)
        return mode & ~0o022 if is_open else mode

    def may_own(self, owner_id: int) -> bool:
        return owner_id == self.owner_id or (owner_id == ROOT_ID and not self.is_private)


def trees(paths: Paths) -> tuple[ProtectedTree, ...]:
    """Return all folders that are compared on a host."""
    etc = ("ssh", "sudoers.d", "sysctl.d", "systemd", "sysusers.d", "tmpfiles.d")
    return (
        ProtectedTree(paths.etc / "polkit-1/rules.d", "polkitd"),  # as its package installs it
        *(ProtectedTree(paths.etc / name) for name in etc),
        ProtectedTree(paths.home),
        ProtectedTree(paths.stamps.parent),
        ProtectedTree(paths.images),
        ProtectedTree(paths.controller / "wheels"),
        ProtectedTree(paths.controller / "current"),
        ProtectedTree(paths.controller_home, "polydev-controller", is_private=True),
    )


def find(trees: Sequence[ProtectedTree]) -> list[str]:
    """Return the paths with wrong permissions, each with its mode and owner."""
    return [f"{path}: {_mode_and_owner(state)}" for tree in trees for path, state in _wrong(tree)]


def mend(trees: Sequence[ProtectedTree]) -> dict[str, object]:
    """Correct owners and modes. Raises HostError `permissions-wrong`."""
    mended = []
    for tree in trees:
        for path, state in _wrong(tree):
            try:
                if not tree.may_own(state.st_uid):
                    os.chown(path, tree.owner_id, -1, follow_symlinks=False)
                path.chmod(tree.mode_for(state))
            except FileNotFoundError:  # removed meanwhile
                continue
            except OSError as error:
                raise HostError(
                    "permissions-wrong",
                    f"cannot correct the permissions of {path}: {error.strerror}",
                    "on the host, as root: `lsattr` and `findmnt` show what protects it",
                ) from error
            mended.append(str(path))
    return {"mended": mended}


def _wrong(tree: ProtectedTree) -> Iterator[tuple[Path, os.stat_result]]:
    # `current` is a link; links below it are not followed.
    top = tree.path.resolve()
    # A private folder itself is declared, and so compared by the deployment.
    paths = [top] if top.exists() and not tree.is_private else []
    for folder, folders, files in os.walk(top):
        paths += [Path(folder, name) for name in (*folders, *files)]
    for path in paths:
        try:
            state = path.lstat()
        except FileNotFoundError:  # removed meanwhile
            continue
        # Writing to a socket only sends requests, which the listener accepts or rejects.
        is_asked = stat.S_ISSOCK(state.st_mode) and tree.may_own(state.st_uid)
        if stat.S_ISLNK(state.st_mode) or is_asked:
            continue
        if tree.mode_for(state) != stat.S_IMODE(state.st_mode) or not tree.may_own(state.st_uid):
            yield path, state


def _mode_and_owner(state: os.stat_result) -> str:
    return f"mode {stat.S_IMODE(state.st_mode):03o} of {state.st_uid}:{state.st_gid}"

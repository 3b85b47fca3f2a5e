"""Files and folders that only root may write to, since root or the controller trusts them.

Files and folders that a deployment declares are compared by the deployment. Here it is the folders
around them, and what programs write into them.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from polydev.hosttool.errors import HostError
from polydev.hosttool.images import STORE
from polydev.hosttool.releases import ROOT as CONTROLLER

ROOT_ID = 0


@dataclass(frozen=True)
class Tree:
    """A folder with all that is in it, to which only root and its `owner` may write."""

    path: Path
    owner: str = "root"

    @property
    def owner_id(self) -> int:
        """The owner's id; root's where there is no such user."""
        try:
            return pwd.getpwnam(self.owner).pw_uid
        except KeyError:
            return ROOT_ID


TREES = (
    Tree(Path("/etc/polkit-1/rules.d"), "polkitd"),  # polkit's package makes it so
    Tree(Path("/etc/ssh")),
    Tree(Path("/etc/sudoers.d")),
    Tree(Path("/etc/sysctl.d")),
    Tree(Path("/etc/systemd")),
    Tree(Path("/etc/sysusers.d")),
    Tree(Path("/etc/tmpfiles.d")),
    Tree(Path("/opt/polydev-ai")),
    Tree(Path("/run/polydev")),
    Tree(STORE),
    Tree(CONTROLLER / "wheels"),
    Tree(CONTROLLER / "current"),
)


def find(trees: Iterable[Tree] = TREES) -> list[str]:
    """The paths that somebody else may write to, each with its mode and the ids of its owner."""
    return [
        f"{path}: {_said(state)}" for tree in trees for path, state in _writable_by_others(tree)
    ]


def mend(trees: Iterable[Tree] = TREES) -> dict[str, object]:
    """Take the right to write from everybody else. Raises HostError `permissions-wrong`."""
    mended = []
    for tree in trees:
        for path, state in _writable_by_others(tree):
            try:
                if not _is_trusted(state, tree):
                    os.chown(path, tree.owner_id, -1, follow_symlinks=False)
                path.chmod(stat.S_IMODE(state.st_mode) & ~0o022)
            except OSError as error:
                raise HostError("permissions-wrong", f"{path}: {error.strerror}") from error
            mended.append(str(path))
    return {"mended": mended}


def _writable_by_others(tree: Tree) -> Iterator[tuple[Path, os.stat_result]]:
    # `current` is a link; of what lies below, none is followed.
    top = tree.path.resolve()
    paths = [top] if top.exists() else []
    for folder, folders, files in os.walk(top):
        paths += [Path(folder, name) for name in (*folders, *files)]
    for path in paths:
        try:
            state = path.lstat()
        except FileNotFoundError:  # removed meanwhile
            continue
        # Whoever may write to a socket may ask who listens there, and that is for it to judge.
        is_asked = stat.S_ISSOCK(state.st_mode) and _is_trusted(state, tree)
        if stat.S_ISLNK(state.st_mode) or is_asked:
            continue
        of_a_group = state.st_mode & stat.S_IWGRP and state.st_gid != ROOT_ID
        if of_a_group or state.st_mode & stat.S_IWOTH or not _is_trusted(state, tree):
            yield path, state


def _is_trusted(state: os.stat_result, tree: Tree) -> bool:
    return state.st_uid in (ROOT_ID, tree.owner_id)


def _said(state: os.stat_result) -> str:
    return f"mode {stat.S_IMODE(state.st_mode):03o} of {state.st_uid}:{state.st_gid}"

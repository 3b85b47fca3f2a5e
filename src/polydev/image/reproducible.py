"""Remove from a layer's tree what would differ between two builds of the same inputs."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path

from polydev.image.file_listing import WHITEOUT, type_of
from polydev.image.tree_merge import matches, walk

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
    elif type_of(info) != WHITEOUT and str(path.relative_to(tree)) not in kept:
        path.unlink()


def clamp_times(tree: Path, epoch: int) -> None:
    """Set the time of everything newer than `epoch` (seconds) to `epoch`."""
    for path in [tree, *walk(tree)]:
        if os.lstat(path).st_mtime > epoch:
            os.utime(path, (epoch, epoch), follow_symlinks=False)

"""The ext4 root filesystem, made from a tree without mounting it.

Its bytes depend on the tree alone: UUIDs and times are fixed, entries are sorted. mkfs copies ctime
and atime from the tree, where they cannot be set, so debugfs sets them afterwards.

The filesystem has no journal and no metadata checksums: a VM's disk is removed with the VM, and the
image as a whole has a SHA-256. Without them mkfs takes a fifth of the time, and the guest has less
to load and compute.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from polydev.errors import BuildError, CommandError
from polydev.image.sandbox import Overlay, build_environment, in_overlay_argv
from polydev.processes import run

BLOCK_BYTES = 4096
INODE_BYTES = 256
SPARE_INODES = 65536
FIRST_INODE = 11
MIB = 1 << 20


def filesystem_bytes(sizes: Sequence[int], free_space_mib: int) -> int:
    """Return the size of a filesystem for files of these sizes and the free space."""
    content = sum(math.ceil(size / BLOCK_BYTES) * BLOCK_BYTES for size in sizes)
    inodes = (len(sizes) + SPARE_INODES) * INODE_BYTES
    # Folders, extent blocks, bitmaps and group descriptors take a few per cent.
    total = (content + inodes) * 1.03 + free_space_mib * MIB
    return math.ceil(total / (4 * MIB)) * 4 * MIB


def mkfs_argv(file: Path, tree: Path, entries: int, identity: uuid.UUID) -> list[str]:
    return [
        *("mkfs.ext4", "-q", "-F", "-L", "polydev-root", "-m", "0"),
        *("-b", str(BLOCK_BYTES), "-I", str(INODE_BYTES), "-N", str(entries + SPARE_INODES)),
        *("-U", str(identity), "-E", f"hash_seed={identity},lazy_itable_init=0,root_owner=0:0"),
        *("-O", "^has_journal,^metadata_csum,^uninit_bg,^resize_inode"),
        *("-d", str(tree), str(file)),
    ]


def time_commands(first: int, last: int, epoch: int) -> str:
    """Return debugfs commands that set ctime and atime of the inodes `first` to `last`."""
    return "".join(
        f"set_inode_field <{inode}> {field} @{epoch}\n"
        for inode in (2, *range(first, last + 1))
        for field in ("ctime", "atime")
    )


def make_rootfs(
    file: Path,
    layers: Sequence[Path],
    listing: Iterable[dict[str, Any]],
    free_space_mib: int,
    epoch: int,
    scratch: Path,
) -> None:
    """Make `file` from the stacked trees. Raises BuildError, for instance if the disk is full."""
    entries = list(listing)
    size = filesystem_bytes([entry["size"] for entry in entries], free_space_mib)
    identity = uuid.uuid5(uuid.NAMESPACE_DNS, "root.polydev")
    at = scratch / "merged"
    at.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        stream.truncate(size)
    environment = build_environment(epoch)
    try:
        run(
            in_overlay_argv(
                Overlay(tuple(layers), at), mkfs_argv(file, at, len(entries), identity)
            ),
            env=environment,
            inherit=False,
        )
    except CommandError as error:
        raise BuildError(
            f"cannot make the root filesystem: {error.stderr_tail}",
            "check that the cache's disk has space (df), or set POLYDEV_CACHE to another disk",
        ) from error
    commands = scratch / "debugfs-commands"
    commands.write_text(time_commands(FIRST_INODE, FIRST_INODE + len(entries), epoch))
    run(["debugfs", "-w", "-f", commands, file], env=environment, inherit=False)
    commands.unlink()

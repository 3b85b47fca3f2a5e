"""Disk space that is reserved for restores and their records, in case the disk is full."""

from __future__ import annotations

import os

from polydev.durable_files import make_folder
from polydev.hosttool.paths import Paths

RESERVE_BYTES = 16 << 20
BLOCK_BYTES = 512  # in which stat counts


def keep_reserve(paths: Paths) -> None:
    make_folder(paths.home)
    descriptor = os.open(paths.reserve, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
        os.fsync(descriptor)
    except OSError:
        paths.reserve.unlink()
        raise
    finally:
        os.close(descriptor)


def use_reserve(paths: Paths) -> None:
    """Free the space; the end of the restore, or the next backup, reserves it again."""
    paths.reserve.unlink(missing_ok=True)


def differences(paths: Paths) -> list[str]:
    """Return a diff with `-` and `+` lines; [] if the space is reserved."""
    try:
        kept = paths.reserve.stat().st_blocks * BLOCK_BYTES
    except FileNotFoundError:
        kept = 0
    if kept >= RESERVE_BYTES:
        return []
    return [
        f"- {paths.reserve}: {kept >> 20} MiB kept for a full disk",
        f"+ {paths.reserve}: {RESERVE_BYTES >> 20} MiB kept for a full disk",
    ]

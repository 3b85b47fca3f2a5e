"""Room kept back while all is well, so that a full disk cannot stop a restore or its record."""

from __future__ import annotations

import os

from polydev.durable import make_folder
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
    """Give the room back to the disk; a restore that is done, or the next backup, keeps it anew."""
    paths.reserve.unlink(missing_ok=True)


def differences(paths: Paths) -> list[str]:
    """Lines with `-` for what is there and `+` for what is to be; [] where the room is kept."""
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

"""Room kept back while all is well, so that a full disk cannot stop a restore or its record."""

from __future__ import annotations

import os

from polydev.hosttool.durable import make_folder
from polydev.hosttool.paths import Paths

RESERVE_BYTES = 16 << 20


def keep_reserve(paths: Paths) -> None:
    make_folder(paths.home)
    descriptor = os.open(paths.reserve, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def use_reserve(paths: Paths) -> None:
    """Give the room back to the disk; the next backup keeps it anew."""
    paths.reserve.unlink(missing_ok=True)

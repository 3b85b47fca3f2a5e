"""The host's counter, which orders records, backups and releases.

Each of them gets the next number when it is made. Clocks do not decide: the operator's may be
wrong, and the host's may jump. Records of earlier versions have no number.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polydev.durable_files import make_folder, read_json, write_json
from polydev.hosttool.paths import Paths


def order(number: int | None, name: str) -> tuple[int, str]:
    """Sort key, oldest first: without a number by name, then by number."""
    return number or 0, name


def number_of(document: Mapping[str, Any]) -> int | None:
    """Return the number of a record or manifest; None if an earlier version made it."""
    found = document.get("number")
    return found if isinstance(found, int) and found > 0 else None


def number_in(file: Path) -> int | None:
    """Return the number in a JSON file; None for a file that cannot be read, too."""
    return number_of(_document(file))


def next_number(paths: Paths) -> int:
    """Take a number that is higher than all that this host assigned, also over a power cut.

    The counter is in no backup, so a restore never sets it back.
    """
    make_folder(paths.home)
    with _alone(paths.home):
        number = _last(paths) + 1
        write_json(paths.sequence, {"last": number})
    return number


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the counter's own lock: callers hold the verb lock already."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _last(paths: Paths) -> int:
    counter = _document(paths.sequence).get("last")
    return counter if isinstance(counter, int) else _highest(paths)


def _highest(paths: Paths) -> int:
    """Return the highest number in use, for a host whose counter was lost."""
    files = [*paths.records.glob("*.json"), *paths.backups.glob("*/backup.json")]
    files += paths.controller.glob("releases/*/release.json")
    return max((number_in(file) or 0 for file in files), default=0)


def _document(file: Path) -> dict[str, Any]:
    try:
        return read_json(file) or {}
    except (OSError, ValueError):
        return {}

"""The host's own counter: it alone says what was made before what.

Every record, backup and release gets the next number when it is made. No clock decides: the
operator's may be wrong, and the host's may jump. What earlier versions made has no number.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polydev.durable import make_folder, read_json, write_json
from polydev.hosttool.paths import Paths


def order(number: int | None, name: str) -> tuple[int, str]:
    """Sort key, oldest first: by number; before all numbers, by name, what has none."""
    return number or 0, name


def number_of(document: Mapping[str, Any]) -> int | None:
    """The number that a record or manifest has; None if an earlier version made it."""
    found = document.get("number")
    return found if isinstance(found, int) and found > 0 else None


def number_in(file: Path) -> int | None:
    """The number in a JSON file; None also for a file that cannot be read."""
    return number_of(_document(file))


def next_number(paths: Paths) -> int:
    """Take a number that is higher than all that this host gave before, also over a power cut.

    The counter is in no backup, so a restore never sets it back.
    """
    make_folder(paths.home)
    with _alone(paths.home):
        number = _last(paths) + 1
        write_json(paths.sequence, {"last": number})
    return number


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """A lock of its own, held for two writes: verbs count while they hold the host's."""
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
    """For a host whose counter was lost: the highest number that anything there has."""
    files = [*paths.records.glob("*.json"), *paths.backups.glob("*/backup.json")]
    files += paths.controller.glob("releases/*/release.json")
    return max((number_in(file) or 0 for file in files), default=0)


def _document(file: Path) -> dict[str, Any]:
    try:
        return read_json(file) or {}
    except (OSError, ValueError):
        return {}

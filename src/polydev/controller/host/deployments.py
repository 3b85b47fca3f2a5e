"""Did the newest deployment succeed? Read from the records that deployments leave on the host."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

FOLDER = Path("/opt/polydev-ai/deployments")
DEPLOYMENT_ID = re.compile(r"\d{8}_\d{6}-[0-9a-f]{4,40}(-dirty)?")
CACHED_RECORDS = 4096


class Known(NamedTuple):
    """What counts of one record, in the order in which the host made them.

    `number` is the host's; records of earlier versions have 0, and their ids begin with the time.
    """

    number: int
    id: str
    status: str


def newest_failed(folder: Path = FOLDER) -> tuple[str, str] | None:
    """Id and status of the newest deployment or rollback, if it did not succeed.

    One under way says nothing yet, nor does a record that cannot be read as one: the one before
    counts. Raises OSError where records are there that may not be read.
    """
    files = [file for file in folder.glob("*.json") if DEPLOYMENT_ID.fullmatch(file.stem)]
    found = (_known(file, *_version(file)) for file in files)
    newest = max((each for each in found if each is not None), default=None)
    return (newest.id, newest.status) if newest and newest.status != "succeeded" else None


def _version(file: Path) -> tuple[int, int]:
    """Another one after each change of a record, which is always replaced as a whole."""
    status = file.stat()
    return status.st_ino, status.st_mtime_ns


@lru_cache(CACHED_RECORDS)
def _known(file: Path, inode: int, changed_ns: int) -> Known | None:
    """None for a record that says nothing. Each version of a file is read once."""
    try:
        record = json.loads(file.read_bytes())
        number, status = int(record.get("number") or 0), str(record["status"])
        kind = record.get("kind", "deploy")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return None if status == "running" or kind == "backup" else Known(number, file.stem, status)

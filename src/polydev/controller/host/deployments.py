"""Did the newest deployment succeed? Read from the records that deployments leave on the host."""

from __future__ import annotations

import json
import re
from pathlib import Path

FOLDER = Path("/opt/polydev-ai/deployments")
# The id begins with the time, so the newest is the last.
DEPLOYMENT_ID = re.compile(r"\d{8}_\d{6}-[0-9a-f]{4,40}(-dirty)?")


def newest_failed(folder: Path = FOLDER) -> tuple[str, str] | None:
    """Id and status of the newest deployment or rollback, if it did not succeed.

    One under way says nothing yet, nor does a record that cannot be read as one: the one before
    counts. Raises OSError where records are there that may not be read.
    """
    for file in sorted(folder.glob("*.json"), reverse=True):
        if DEPLOYMENT_ID.fullmatch(file.stem) is None:
            continue
        try:
            record = json.loads(file.read_bytes())
            status, kind = str(record["status"]), str(record.get("kind", "deploy"))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        if status != "running" and kind != "backup":
            return None if status == "succeeded" else (file.stem, status)
    return None

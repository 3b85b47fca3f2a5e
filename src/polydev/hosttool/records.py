"""What became of each deployment, one file each; only what succeeded can be gone back to."""

from __future__ import annotations

import errno
from typing import Any

from polydev.hosttool.durable import make_folder, read_json, write_json
from polydev.hosttool.errors import HostError
from polydev.hosttool.paths import DEPLOYMENT_ID, Paths, require_id
from polydev.hosttool.reserve import use_reserve

STATUSES = ("running", "succeeded", "failed", "rolled-back", "rollback-failed", "interrupted")


def write(paths: Paths, record: dict[str, Any]) -> dict[str, Any]:
    """Write a record in place of one with the same id. Raises HostError `bad-record`, `bad-id`."""
    require_id(str(record.get("id", "")))
    if record.get("status") not in STATUSES:
        raise HostError(
            "bad-record",
            f"status {record.get('status')!r} is none of {', '.join(STATUSES)}",
        )
    file = paths.records / f"{record['id']}.json"
    try:
        make_folder(paths.records)
        write_json(file, record)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        use_reserve(paths)
        make_folder(paths.records)
        write_json(file, record)
    return record


def records(paths: Paths) -> list[dict[str, Any]]:
    """All records, newest first; one that cannot be read has the status `unreadable`."""
    if not paths.records.is_dir():
        return []
    ids = sorted((path.stem for path in paths.records.glob("*.json")), reverse=True)
    return [_record(paths, each) for each in ids if DEPLOYMENT_ID.fullmatch(each)]


def show(paths: Paths, deployment_id: str) -> dict[str, Any]:
    """Raises HostError `record-missing`."""
    require_id(deployment_id)
    if not (paths.records / f"{deployment_id}.json").exists():
        raise HostError("record-missing", f"there is no record of deployment {deployment_id}")
    return _record(paths, deployment_id)


def _record(paths: Paths, deployment_id: str) -> dict[str, Any]:
    try:
        record = read_json(paths.records / f"{deployment_id}.json")
        if record is None or record["id"] != deployment_id:
            raise ValueError("the file is not the record that its name says")
    except (ValueError, KeyError) as error:
        return {"id": deployment_id, "status": "unreadable", "problem": str(error)}
    return record

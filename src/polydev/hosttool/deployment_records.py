"""Records of deployments, one file each; a rollback needs a record that succeeded.

The host numbers a record when it is first written; see `deployment_counter`.
"""

from __future__ import annotations

import errno
from typing import Any

from polydev.durable_files import make_folder, read_json, write_json
from polydev.host_layout import DEPLOYMENT_ID
from polydev.hosttool.deployment_counter import next_number, number_of, order
from polydev.hosttool.disk_reserve import use_reserve
from polydev.hosttool.errors import HostError
from polydev.hosttool.paths import Paths, require_id
from polydev.hosttool.verb import ID, Call, HostVerb

STATUSES = ("running", "succeeded", "failed", "rolled-back", "rollback-failed", "interrupted")
UNREADABLE = "unreadable"


def write(paths: Paths, record: dict[str, Any]) -> dict[str, Any]:
    """Write or replace a record, keeping its number; return what was written.

    Raises HostError `bad-record`, `bad-id`.
    """
    require_id(str(record.get("id", "")))
    if record.get("status") not in STATUSES:
        raise HostError(
            "bad-record",
            f"record {record['id']} has the unknown status {record.get('status')!r}",
            f"use one of {', '.join(STATUSES)}",
        )
    try:
        return _write(paths, record)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        use_reserve(paths)
        return _write(paths, record)


def _write(paths: Paths, record: dict[str, Any]) -> dict[str, Any]:
    make_folder(paths.records)
    file = paths.records / f"{record['id']}.json"
    number = _number(paths, record) if file.exists() else next_number(paths)
    written = {key: value for key, value in record.items() if key != "number"}
    if number is not None:
        written["number"] = number
    write_json(file, written)
    return written


def _number(paths: Paths, record: dict[str, Any]) -> int | None:
    """Return the number that a record has; records begun by an earlier version have none."""
    former = _record(paths, record["id"])
    return number_of(record if former["status"] == UNREADABLE else former)


def records(paths: Paths) -> list[dict[str, Any]]:
    """Return all records, newest first; one that cannot be read has the status `unreadable`."""
    if not paths.records.is_dir():
        return []
    ids = (path.stem for path in paths.records.glob("*.json"))
    found = [_record(paths, each) for each in ids if DEPLOYMENT_ID.fullmatch(each)]
    return sorted(found, key=lambda each: order(number_of(each), each["id"]), reverse=True)


def show(paths: Paths, deployment_id: str) -> dict[str, Any]:
    """Return one record. Raises HostError `record-missing`."""
    require_id(deployment_id)
    if not (paths.records / f"{deployment_id}.json").exists():
        raise HostError(
            "record-missing",
            f"there is no record of deployment {deployment_id}",
            "`polydev-host record list` lists all of them",
        )
    return _record(paths, deployment_id)


def _record(paths: Paths, deployment_id: str) -> dict[str, Any]:
    try:
        record = read_json(paths.records / f"{deployment_id}.json")
        if record is None or record["id"] != deployment_id:
            raise ValueError("the file is not the record that its name says")
    except (ValueError, KeyError) as error:
        return {"id": deployment_id, "status": UNREADABLE, "problem": str(error)}
    return record


# Verbs


def record_write(call: Call) -> object:
    return write(call.paths, call.document())


def record_list(call: Call) -> object:
    return {"records": records(call.paths)}


def record_show(call: Call) -> object:
    return show(call.paths, call.arguments.id)


VERBS = (
    HostVerb("record write", "Write the record on stdin", record_write),
    HostVerb("record list", "List all records, newest first", record_list),
    HostVerb("record show", "Show one record", record_show, (ID,)),
)

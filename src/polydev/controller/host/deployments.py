"""Records that deployments leave on the host: the list, the newest failure, and how to go back.

`./inv rollback` reads the same records and follows the same rules.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from polydev.controller.host.cached_json_files import cached_reader, why_unreadable
from polydev.deployment_records import Record, current_state, states
from polydev.errors import DeploymentNotFound
from polydev.host_layout import DEPLOYMENT_ID, DEPLOYMENTS

FOLDER = DEPLOYMENTS
MOST_BYTES = 8 << 20
CACHED_RECORDS = 4096


@dataclass(frozen=True)
class Deployment:
    """A deployment's record: its JSON, and its value, or None and the `problem` with it."""

    id: str
    document: dict[str, Any]
    record: Record | None
    problem: str | None = None

    @property
    def order(self) -> tuple[int, str]:
        """Return a key for sorting: the host's number, or without one the id."""
        number = self.record.number if self.record else None
        return number or 0, self.id


@dataclass(frozen=True)
class WayBack:
    """The way to restore the host's state before a deployment.

    command     to run on the operator's machine; None where that is impossible, with the `reason`
    """

    to: str | None
    command: str | None
    reason: str | None = None


def deployments(folder: Path) -> list[Deployment]:
    """Return all deployments, newest first. Raises OSError where their folder cannot be read."""
    names = [file.stem for file in folder.glob("*.json")]
    found = [_read(folder / f"{name}.json") for name in names if DEPLOYMENT_ID.fullmatch(name)]
    return sorted(found, key=lambda each: each.order, reverse=True)


def one_of(found: Sequence[Deployment], deployment_id: str) -> Deployment:
    """Return one deployment. Raises DeploymentNotFound."""
    for each in found:
        if each.id == deployment_id:
            return each
    raise DeploymentNotFound(
        f"there is no record of deployment {deployment_id}", "./inv deployments lists all of them"
    )


def way_back(deployment: Deployment, found: Sequence[Deployment]) -> WayBack:
    """Return the command that restores the state before a deployment, or why that is impossible."""
    record = deployment.record
    records = [each.record for each in found if each.record is not None]
    if record is None:
        return WayBack(None, None, "its record cannot be read")
    before = record.previous
    if before is None:
        return WayBack(None, None, "nothing was deployed before it")
    if before == current_state(records):
        return WayBack(before, None, "the host already has that state")
    if before not in states(records):
        return WayBack(before, None, "the backup of that state is gone")
    words = ["./inv", "rollback", "--to", before]
    if not record.host.startswith("lab-"):  # a lab's inventory is the default
        words += ["--inventory", "FILE", "--host", record.host]
    return WayBack(before, shlex.join(words))


def _document(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError("it is not a record of a deployment")
    return found


_document_in = cached_reader(_document, MOST_BYTES, CACHED_RECORDS)


def _read(file: Path) -> Deployment:
    document: dict[str, Any] = {}
    try:
        document = _document_in(file)
        record = Record.model_validate(document)
        if record.id != file.stem:
            raise ValueError(f"it is the record of deployment {record.id[:60]}")
    except (OSError, ValueError) as error:
        return Deployment(file.stem, document, None, why_unreadable(error, Record))
    return Deployment(file.stem, document, record)


class NewestRecord(NamedTuple):
    """The parts of a record that `newest_failed` needs; these sort in the order of deployments.

    `number` is the host's; older records have none (0), and their ids begin with the time.
    """

    number: int
    id: str
    status: str


def newest_failed(folder: Path = FOLDER) -> tuple[str, str] | None:
    """Return the id and status of the newest deployment or rollback, if it did not succeed.

    Records of running deployments and invalid records are passed over. Raises OSError where
    records cannot be read.
    """
    files = [file for file in folder.glob("*.json") if DEPLOYMENT_ID.fullmatch(file.stem)]
    found = (_known(file, *_version(file)) for file in files)
    newest = max((each for each in found if each is not None), default=None)
    return (newest.id, newest.status) if newest and newest.status != "succeeded" else None


def _version(file: Path) -> tuple[int, int]:
    """Return the version of a record, which is always replaced as a whole."""
    status = file.stat()
    return status.st_ino, status.st_mtime_ns


@lru_cache(CACHED_RECORDS)
def _known(file: Path, inode: int, changed_ns: int) -> NewestRecord | None:
    """Read each version of a record once; None where it does not count."""
    try:
        record = json.loads(file.read_bytes())
        number, status = int(record.get("number") or 0), str(record["status"])
        kind = record.get("kind", "deploy")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return (
        None if status == "running" or kind == "backup" else NewestRecord(number, file.stem, status)
    )

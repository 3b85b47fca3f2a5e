"""What was done to this host: the records that deployments leave on it, and the way back from each.

The rules of a way back are those of `./inv rollback`, which reads the same records.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polydev.controller.host.deployments import DEPLOYMENT_ID
from polydev.controller.host.record_files import record_reader, why_unreadable
from polydev.deployment_records import Record, current_state, states
from polydev.errors import DeploymentNotFound

MOST_BYTES = 8 << 20
CACHED_RECORDS = 4096


@dataclass(frozen=True)
class Deployment:
    """A record as it is, and as it is understood: None where it cannot be, for the `problem`."""

    id: str
    document: dict[str, Any]
    record: Record | None
    problem: str | None = None

    @property
    def order(self) -> tuple[int, str]:
        """Return its place among all that was done to the host; without a number, by its id."""
        number = self.record.number if self.record else None
        return number or 0, self.id


@dataclass(frozen=True)
class WayBack:
    """How to bring the host back to what it was before a deployment.

    command     the line for the operator's machine; None where there is no way, for the `reason`
    """

    to: str | None
    command: str | None
    reason: str | None = None


def deployments(folder: Path) -> list[Deployment]:
    """All of them, newest first. Raises OSError where they may not be read."""
    names = [file.stem for file in folder.glob("*.json")]
    found = [_read(folder / f"{name}.json") for name in names if DEPLOYMENT_ID.fullmatch(name)]
    return sorted(found, key=lambda each: each.order, reverse=True)


def one_of(found: Sequence[Deployment], deployment_id: str) -> Deployment:
    """Raises DeploymentNotFound."""
    for each in found:
        if each.id == deployment_id:
            return each
    raise DeploymentNotFound(
        f"there is no record of deployment {deployment_id}", "./inv deployments shows all of them"
    )


def way_back(deployment: Deployment, found: Sequence[Deployment]) -> WayBack:
    """Return the command that restores the state before a deployment, or why there is none."""
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
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError("it is no record")
    return found


_document_in = record_reader(_document, MOST_BYTES, CACHED_RECORDS)


def _read(file: Path) -> Deployment:
    document: dict[str, Any] = {}
    try:
        document = _document_in(file)
        record = Record.model_validate(document)
        if record.id != file.stem:
            raise ValueError(f"it is that of deployment {record.id[:60]}")
    except (OSError, ValueError) as error:
        return Deployment(file.stem, document, None, why_unreadable(error, Record))
    return Deployment(file.stem, document, record)

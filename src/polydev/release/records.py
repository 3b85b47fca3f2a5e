"""What is known of deployments, and which of them a rollback can go back to. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from polydev.errors import DeployError

Kind = Literal["deploy", "rollback", "backup"]
Status = Literal["running", "succeeded", "failed", "rolled-back", "rollback-failed", "interrupted"]
LIST_HINT = "./inv deployments shows all of them"


class Record(BaseModel):
    """One deployment, rollback or backup, as the host keeps it.

    state       id of the deployment whose result the host has after this one
    previous    the state when this one began; its backup is of that
    backup      whether a backup was made before anything changed
    changes     how many operations changed something
    gate        what the health gate found at the end, or None where it was not asked
    undone      what an automatic rollback did and what the gate said after it
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="allow")

    id: str
    kind: Kind = "deploy"
    status: Status = "running"
    target: str = "all"
    host: str = ""
    started_at: datetime
    finished_at: datetime | None = None
    who: str = ""
    commit: str = ""
    state: str | None = None
    previous: str | None = None
    backup: bool = False
    changes: int = 0
    operations: list[str] = []
    reason: str | None = None
    gate: dict[str, Any] | None = None
    undone: dict[str, Any] | None = None


def newest_first(records: Iterable[Record]) -> list[Record]:
    return sorted(records, key=lambda record: (record.started_at, record.id), reverse=True)


def current_state(records: Iterable[Record]) -> str | None:
    """Id of the deployment whose result the host has; None before the first."""
    for record in newest_first(records):
        if record.status == "succeeded" and record.kind != "backup":
            return record.state
    return None


def states(records: Sequence[Record]) -> list[str]:
    """States that a rollback may go back to, newest first: succeeded, and not the current one."""
    current = current_state(records)
    found: dict[str, None] = {}
    for record in newest_first(records):
        if record.status == "succeeded" and record.kind == "deploy" and record.changes:
            found.setdefault(record.id)
    return [state for state in found if state != current and backup_of(state, records)]


def backup_of(state: str, records: Sequence[Record]) -> str | None:
    """The newest backup that was made while the host was in that state."""
    for record in newest_first(records):
        if record.previous == state and record.backup:
            return record.id
    return None


def rollback_state(records: Sequence[Record], to: str | None) -> str:
    """The state to go back to: the one that is asked for, or the last one before the current.

    Raises DeployError where there is none, or the one asked for did not succeed.
    """
    possible = states(records)
    known = ", ".join(possible) or "none"
    if to is None:
        current = current_state(records)
        started = {record.id: record.started_at for record in records}
        for state in possible:
            if current is None or started[state] < started.get(current, started[state]):
                return state
        raise DeployError(
            f"there is nothing to roll back to (succeeded deployments: {known})", LIST_HINT
        )
    named = next((record for record in records if record.id == to), None)
    if named is None:
        raise DeployError(f"no deployment {to}", f"one of: {known}")
    if named.status != "succeeded" or named.kind != "deploy":
        raise DeployError(
            f"{named.kind} {to} is {named.status}: only a deployment that succeeded can be rolled "
            "back to",
            f"one of: {known}",
        )
    state = named.state or named.id
    if state == current_state(records):
        raise DeployError(f"the host is in the state of {to} already", LIST_HINT)
    if state not in possible:
        raise DeployError(f"there is no backup of the state of {to} any more", f"one of: {known}")
    return state


def next_state(records: Sequence[Record], after: str) -> str | None:
    """The next older state to offer where one turned out damaged."""
    possible = states(records)
    later = possible[possible.index(after) + 1 :] if after in possible else possible
    return later[0] if later else None

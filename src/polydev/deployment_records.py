"""Records of deployments, and the states that a rollback can go back to. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from polydev.errors import DeployError

Kind = Literal["deploy", "rollback", "backup"]
Status = Literal["running", "succeeded", "failed", "rolled-back", "rollback-failed", "interrupted"]
MOST_NAMED = 5
LIST_HINT = "./inv deployments shows all of them"


class Record(BaseModel):
    """One deployment, rollback or backup, as the host keeps it.

    number      position in the order of all changes of the host, which assigns it; None before
                that, and in records of earlier versions
    state       id of the deployment whose result the host has after this one
    previous    the state when this one began; its backup is of that state
    backup      whether a backup was made before anything changed
    changes     how many operations changed something
    gate        what the health gate found at the end, or None if it did not run
    undone      what an automatic rollback did and what the gate said after it
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="allow")

    id: str
    number: int | None = None
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


def order(number: int | None, name: str) -> tuple[int, str]:
    """Return a sort key, oldest first: the host's number; before all numbers, names without one."""
    return number or 0, name


def newest_first(records: Iterable[Record]) -> list[Record]:
    """Sort by the host's numbers, since times and ids come from the operators' clocks."""
    return sorted(records, key=lambda record: order(record.number, record.id), reverse=True)


def current_state(records: Iterable[Record]) -> str | None:
    """Return the id of the deployment whose result the host has; None before the first.

    None too after a failed rollback: the host then has the result of no deployment.
    """
    last = last_settled(records)
    return last.state if last else None


def last_settled(records: Iterable[Record]) -> Record | None:
    """Return the newest record of a change that was not undone."""
    settled = ("succeeded", "rollback-failed")
    return next((each for each in newest_first(records) if each.status in settled), None)


def states(records: Sequence[Record]) -> list[str]:
    """Return the states that a rollback may go back to, newest first; not the current one."""
    current = current_state(records)
    succeeded = [
        record.id
        for record in newest_first(records)
        if record.status == "succeeded" and record.kind == "deploy" and record.changes
    ]
    return [state for state in succeeded if state != current and backup_of(state, records)]


def backup_of(state: str, records: Iterable[Record]) -> str | None:
    """Return the newest backup that was made while the host was in that state."""
    for record in newest_first(records):
        if record.previous == state and record.backup:
            return record.id
    return None


def previous_state(records: Sequence[Record]) -> str | None:
    """Return the state before the last change, also if that change could not be undone."""
    last = last_settled(records)
    if last is None or last.state is None:
        return last.previous if last else None
    return state_before(last.state, records)


def state_before(state: str, records: Iterable[Record]) -> str | None:
    """Return the state before the deployment that made this state."""
    made = next((record for record in records if record.id == state), None)
    return made.previous if made else None


def interrupted_without(
    holders: Collection[str], records: Iterable[Record], reason: str
) -> list[Record]:
    """Return the records; one that runs but does not hold the host's lock is interrupted."""

    def seen(record: Record) -> Record:
        if record.status != "running" or record.id in holders:
            return record
        return record.model_copy(
            update={"status": "interrupted", "reason": record.reason or reason}
        )

    return [seen(record) for record in records]


def one_named(records: Sequence[Record], wanted: str) -> Record:
    """Return the one record whose id begins so. Raises DeployError if none does, or several do."""
    found = [record for record in newest_first(records) if record.id.startswith(wanted)]
    exact = [record for record in found if record.id == wanted]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if not found:
        raise DeployError(f"no deployment {wanted}", LIST_HINT)
    some = ", ".join(record.id for record in found[:MOST_NAMED])
    raise DeployError(
        f"{wanted} is the beginning of {len(found)} deployments: {some}", "give more of the id"
    )


def rollback_state(records: Sequence[Record], to: str | None) -> str:
    """Return the state to go back to: the requested one, or the one before the current.

    `to` is an id or the beginning of one; of several, one that can be restored is taken. The state
    before the current is what the current deployment found, which may differ from what was
    deployed last: that may have been rolled back. Raises DeployError if there is no such state, or
    if the requested deployment did not succeed.
    """
    possible = states(records)
    known = ", ".join(possible) or "none"
    if to is None:
        before = previous_state(records)
        if before is None or before not in possible:
            raise DeployError(
                f"there is nothing to roll back to (succeeded deployments: {known})", LIST_HINT
            )
        return before
    beginning = [record for record in records if record.id.startswith(to)]
    if not beginning:
        raise DeployError(f"no deployment {to}", f"use one of: {known}")
    is_exact = any(each.id == to for each in beginning)
    usable = [each for each in beginning if each.id in possible and not is_exact]
    named = one_named(usable or beginning, to)
    to = named.id
    if named.status != "succeeded" or named.kind != "deploy":
        raise DeployError(
            f"{named.kind} {to} is {named.status}: only a deployment that succeeded can be rolled "
            "back to",
            f"use one of: {known}",
        )
    state = named.state or named.id
    if state == current_state(records):
        raise DeployError(f"the host is in the state of {to} already", LIST_HINT)
    if state not in possible:
        raise DeployError(
            f"there is no backup of the state of {to} any more", f"use one of: {known}"
        )
    return state


def next_state(records: Sequence[Record], after: str) -> str | None:
    """Return the state before that one, to offer it if the backup of that one is damaged."""
    before = state_before(after, records)
    return before if before in states(records) else None

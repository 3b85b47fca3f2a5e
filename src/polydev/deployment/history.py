"""The deployments of a host, from its records and its lock."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from polydev.deployment.connection import TOOL, HostConnection
from polydev.deployment_records import Record, interrupted_without, newest_first

UNFINISHED = "its operator's process ended; the next deployment restores the host"


def history(connection: HostConnection) -> list[Record]:
    """Return all records, newest first; one that runs without the lock is interrupted.

    The lock is read before and after the records: a deployment that held it once may be running.
    """
    words = f"{{ {TOOL} lock show; {TOOL} record list; {TOOL} lock show; }}"
    said = documents(connection.command(f"test ! -x {TOOL} || {words}"))
    if not said:
        return []
    before, kept, after = said
    records = [Record.model_validate(each) for each in kept["records"] if "startedAt" in each]
    return newest_first(interrupted_without(_holders((before, after)), records, UNFINISHED))


def records_of(connection: HostConnection) -> list[Record]:
    """Return all records that the host keeps; none if nothing was ever deployed."""
    found = json.loads(connection.command(f"test ! -x {TOOL} || {TOOL} record list") or "{}")
    # Without records that cannot be read (status "unreadable"): a rollback cannot use them.
    return [Record.model_validate(each) for each in found.get("records", []) if "startedAt" in each]


def _holders(shown: Iterable[dict[str, Any]]) -> set[str]:
    return {str(each["lock"]["id"]) for each in shown if each["held"] and each["lock"]}


def documents(text: str) -> list[Any]:
    """Return the JSON documents that follow one another in a text."""
    decoder, found, at = json.JSONDecoder(), [], 0
    text = text.strip()
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        found.append(value)
        at += len(text[at:]) - len(text[at:].lstrip())
    return found

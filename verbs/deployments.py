"""deployments: the changes of a host, as a list or one of them in detail."""

from __future__ import annotations

import json as json_text
from typing import TYPE_CHECKING

from invoke.context import Context

from polydev.cli import answer, edge, require_at_least, stdout, task
from verbs.deploy import described_host, record_fields
from verbs.paths_and_help import HOST_HELP, INVENTORY_HELP, JSON_HELP, LAB_INVENTORY
from verbs.text_tables import minute, more_text

if TYPE_CHECKING:
    from polydev.deployment_records import Record

MOST_SHOWN = 20
WIDEST = 160


@task(
    help={
        "id": "show this one in detail: its id or the beginning of it; --id may be left out",
        "limit": f"how many of the newest (default: {MOST_SHOWN})",
        "inventory": INVENTORY_HELP,
        "host": HOST_HELP,
        "json": JSON_HELP,
    },
)
@edge
def deployments(
    context: Context,
    id: str = "",
    limit: int = MOST_SHOWN,
    inventory: str = LAB_INVENTORY,
    host: str = "",
    json: bool = False,
) -> None:
    """List a host's deployments and how they ended, newest first; or show one in detail."""
    from polydev.deployment import deploy_and_rollback
    from polydev.deployment.history import history
    from polydev.deployment_records import current_state, one_named

    require_at_least(1, "limit", limit)
    _, described = described_host(inventory, host)
    with deploy_and_rollback.connected(described) as connection:
        records = history(connection)
    if id:
        record = one_named(records, id)
        answer(record_fields(record), as_json=json, text=details(record))
        return
    current, shown = current_state(records), records[:limit]
    width = stdout.width if stdout.is_terminal else WIDEST
    lines = [line(record, is_current=record.id == current)[:width].rstrip() for record in shown]
    none = f"nothing was deployed to {described.name} yet: ./inv deploy"
    more = more_text(len(records) > limit, limit, all_of_them=True)
    why = "\n(details: ./inv deployments ID)" if any(each.reason for each in shown) else ""
    answer(
        [record_fields(record) for record in shown],
        as_json=json,
        text=("\n".join(lines) or none) + more + why,
    )


def line(record: Record, *, is_current: bool) -> str:
    """Return a record as one line, with the first line of its reason."""
    reason, *rest = (record.reason or "").strip().splitlines() or [""]
    return (
        f"{'*' if is_current else ' '} {record.id:<32} {record.kind:<9}{record.status:<16}"
        f"{record.changes:>4} changes  {reason}{' …' if rest else ''}"
    )


def details(record: Record) -> str:
    """Return a record in detail."""
    fields = record_fields(record)
    times = {name: minute(fields[name]) for name in ("startedAt", "finishedAt")}
    plain = {
        name: value
        for name, value in (fields | times).items()
        if name not in ("reason", "operations", "gate", "undone") and value not in (None, "")
    }
    lines = [f"{name:<12}{value}" for name, value in plain.items()]
    lines += _part("reason", (record.reason or "").splitlines())
    lines += _part("operations", record.operations)
    if record.gate:
        checks = record.gate.get("checks", [])
        found = [
            f"{'ok' if each['ok'] else 'NO':<4}{each['name']}: {each['detail']}" for each in checks
        ]
        lines += _part("health gate", found)
    if record.undone:
        lines += _part("undone", json_text.dumps(record.undone, indent=1).splitlines())
    return "\n".join(lines)


def _part(name: str, lines: list[str]) -> list[str]:
    return [f"{name}:", *(f"    {each}" for each in lines)] if lines else []

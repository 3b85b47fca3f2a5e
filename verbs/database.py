"""database.*: copy a host's database, restore a copy, move it to PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from invoke.context import Context

from polydev.cli import answer, edge, task
from polydev.errors import ConfigError
from verbs.deploy import (
    WAIT_HELP,
    described_host,
    record_fields,
    require_ready,
)
from verbs.paths_and_help import LAB_INVENTORY, LOGS
from verbs.plan_text import DIFF_HELP, plan_fields, plan_text
from verbs.users_and_tokens import ON_HOST_HELP, host_controller


@task(positional=["file"], help={"file": "where to, on this machine", **ON_HOST_HELP})
@edge
def backup(
    context: Context,
    file: str,
    inventory: str = LAB_INVENTORY,
    host: str = "",
    json: bool = False,
) -> None:
    """Copy a host's database to a local file, while it is in use."""
    target = Path(file).resolve()
    made = host_controller(inventory, host).back_up(target)
    answer(
        {**made, "file": str(target)},
        as_json=json,
        text=f"{target}, {made['bytes']:,} bytes: back with ./inv database.restore {quote(file)}",
    )


@task(
    positional=["file"],
    help={
        "file": "what database.backup wrote, on this machine",
        "stop": "stop the controller for it, and start it again",
        **ON_HOST_HELP,
    },
)
@edge
def restore(
    context: Context,
    file: str,
    stop: bool = False,
    inventory: str = LAB_INVENTORY,
    host: str = "",
    json: bool = False,
) -> None:
    """Replace a host's database by a copy; what was written since is lost."""
    source = Path(file).resolve()
    done = host_controller(inventory, host).restore(source, stop=stop)
    rows = done["rows"]
    answer(
        {**done, "file": str(source)},
        as_json=json,
        text=f"the database was restored from {source}: {rows['users']} users, "
        f"{rows['sessions']} sessions",
    )


@task(
    help={
        "to": "postgresql: the database of the inventory's secret database-url",
        "replace": "first delete our rows in PostgreSQL, without a backup (else a database with "
        "rows is refused)",
        "plan": "check, show what would change, and change nothing",
        "diff": f"with --plan: {DIFF_HELP}",
        "wait": WAIT_HELP,
        **ON_HOST_HELP,
    }
)
@edge
def move(
    context: Context,
    to: str = "",
    replace: bool = False,
    plan: bool = False,
    diff: bool = False,
    wait: float = 0.0,
    inventory: str = LAB_INVENTORY,
    host: str = "",
    json: bool = False,
) -> None:
    """Move a host's database from SQLite to PostgreSQL, with all rows.

    This deploys the controller with the database of the secret database-url. The controller stops
    for some seconds while every row is copied and compared; VMs continue. ./inv rollback returns
    to SQLite.
    """
    from polydev.deployment import deploy_and_rollback
    from polydev.progress import Steps

    if to != "postgresql":
        raise ConfigError(
            f"cannot move a database to {to}" if to else "--to is missing",
            "use ./inv database.move --to postgresql; ./inv rollback returns to SQLite",
        )
    require_ready(wait)
    project, described = described_host(inventory, host)
    if diff and not plan:
        raise ConfigError("--diff needs --plan", "add --plan, or leave it out")
    options = deploy_and_rollback.move_options(replace_rows=replace, wait_seconds=wait)
    if plan:
        found = deploy_and_rollback.plan(project, described, options, Steps())
        answer(plan_fields(found), as_json=json, text=plan_text(found, show_diff=diff))
        return
    record, rows = deploy_and_rollback.move_database(project, described, options, Steps(), LOGS)
    counts = ", ".join(f"{count} {table}" for table, count in rows.items() if count)
    answer(
        record_fields(record) | {"moved": rows},
        as_json=json,
        text=f"{record.host} uses PostgreSQL since {record.id}: moved and compared {counts}\n"
        "back to SQLite, without what is written from now on: ./inv rollback",
    )

"""Verbs that change a host or compare it: deploy, rollback, backup, drift, unlock."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invoke.context import Context

from polydev.cli import answer, edge, task
from polydev.errors import ConfigError
from verbs.paths_and_help import HOST_HELP, INVENTORY_HELP, JSON_HELP, LAB_INVENTORY, LOGS, ROOT
from verbs.plan_text import DIFF_HELP, plan_fields, plan_text

if TYPE_CHECKING:
    from polydev.deployment.pyinfra_process import DescribedHost, Project
    from polydev.deployment_records import Record

TARGETS = ("all", "master-controller", "vm-agent")
WAIT_HELP = "how many seconds to wait for somebody else's deployment to end (default: 0)"


def described_host(inventory: str, host: str) -> tuple[Project, DescribedHost]:
    from polydev.deployment.pyinfra_process import Project, describe

    project = Project(ROOT, Path(inventory).resolve())
    described = describe(project)
    hosts = [each for each in described if host in ("", each.name)]
    if len(hosts) != 1:
        known = ", ".join(each.name for each in described)
        what = f"no host {host}" if host else "several hosts"
        raise ConfigError(f"{inventory}: {what}", f"name one with --host: {known}")
    return project, hosts[0]


def require_ready(wait: float) -> None:
    """Return if a deployment can begin: --wait is a time, and the checkout has a commit.

    Raises ConfigError.
    """
    from polydev.deployment_id import require_commit

    if not 0 <= wait < inf:
        raise ConfigError(f"--wait {wait:g} is not a number of seconds", "use 0 or more")
    require_commit(ROOT)


def record_fields(record: Record) -> dict[str, Any]:
    return record.model_dump(mode="json", by_alias=True)


@task(
    help={
        "inventory": INVENTORY_HELP,
        "host": HOST_HELP,
        "target": "all, master-controller or vm-agent (the golden image that has it)",
        "bootstrap": "skip the health gate, for the first deployment of a host",
        "plan": "show what would change, and change nothing",
        "diff": f"with --plan: {DIFF_HELP}",
        "detailed_exitcode": "with --plan: exit status 0 if nothing would change, 2 if something",
        "wait": WAIT_HELP,
        "json": JSON_HELP,
    }
)
@edge
def deploy(
    context: Context,
    inventory: str = LAB_INVENTORY,
    host: str = "",
    target: str = "all",
    bootstrap: bool = False,
    plan: bool = False,
    diff: bool = False,
    detailed_exitcode: bool = False,
    wait: float = 0.0,
    json: bool = False,
) -> None:
    """Deploy to a host, and restore its previous state if anything fails."""
    from polydev.deployment import deploy_and_rollback
    from polydev.progress import Steps

    if target not in TARGETS:
        raise ConfigError(f"no such target: {target}", f"use one of {', '.join(TARGETS)}")
    if detailed_exitcode and not plan:
        raise ConfigError("--detailed-exitcode needs --plan", "add --plan, or leave it out")
    if diff and not plan:
        raise ConfigError("--diff needs --plan", "add --plan, or leave it out")
    require_ready(wait)
    project, described = described_host(inventory, host)
    options = deploy_and_rollback.DeployOptions(
        target=target, bootstrap=bootstrap, wait_seconds=wait
    )
    if plan:
        found = deploy_and_rollback.plan(project, described, options, Steps())
        answer(plan_fields(found), as_json=json, text=plan_text(found, show_diff=diff))
        raise SystemExit(2 if detailed_exitcode and found.changing else 0)
    record = deploy_and_rollback.deploy(project, described, options, Steps(), LOGS)
    answer(
        record_fields(record),
        as_json=json,
        text=succeeded_text(record),
    )


def succeeded_text(record: Record) -> str:
    """Return the result: an operation does nothing if an earlier one did its work already."""
    planned = len(record.operations)
    done = f"{record.changes} of {planned} planned operations" if planned else "no operation"
    return f"deployment {record.id} of {record.host} succeeded: {done} changed the host"


@task(
    help={
        "inventory": INVENTORY_HELP,
        "host": HOST_HELP,
        "to": "id of a deployment that succeeded, or its beginning (default: the one before "
        "the current)",
        "wait": WAIT_HELP,
        "json": JSON_HELP,
    }
)
@edge
def rollback(
    context: Context,
    inventory: str = LAB_INVENTORY,
    host: str = "",
    to: str = "",
    wait: float = 0.0,
    json: bool = False,
) -> None:
    """Restore the state of an earlier deployment on a host, including its database."""
    from polydev.deployment import deploy_and_rollback
    from polydev.progress import Steps

    require_ready(wait)
    project, described = described_host(inventory, host)
    record = deploy_and_rollback.rollback(project, described, to or None, Steps(), LOGS, wait)
    answer(
        record_fields(record),
        as_json=json,
        text=f"{record.host} was rolled back to deployment {record.state}",
    )


@task(help={"inventory": INVENTORY_HELP, "host": HOST_HELP, "wait": WAIT_HELP, "json": JSON_HELP})
@edge
def backup(
    context: Context,
    inventory: str = LAB_INVENTORY,
    host: str = "",
    wait: float = 0.0,
    json: bool = False,
) -> None:
    """Back up a host's configuration, database, release and golden link now."""
    from polydev.deployment import deploy_and_rollback
    from polydev.progress import Steps

    require_ready(wait)
    project, described = described_host(inventory, host)
    record = deploy_and_rollback.back_up(project, described, Steps(), LOGS, wait)
    answer(record_fields(record), as_json=json, text=f"backup {record.id} of {record.host}")


@task(
    help={
        "inventory": INVENTORY_HELP,
        "host": HOST_HELP,
        "diff": DIFF_HELP,
        "json": JSON_HELP,
    }
)
@edge
def drift(
    context: Context,
    inventory: str = LAB_INVENTORY,
    host: str = "",
    diff: bool = False,
    json: bool = False,
) -> None:
    """Show what on a host is not as declared: exit status 2 if anything, else 0."""
    from polydev.deployment import deploy_and_rollback
    from polydev.progress import Steps

    project, described = described_host(inventory, host)
    found = deploy_and_rollback.plan(
        project, described, deploy_and_rollback.DeployOptions(), Steps()
    )
    answer(
        plan_fields(found),
        as_json=json,
        text=plan_text(found, show_diff=diff)
        if found.changing
        else f"{described.name} is as declared",
    )
    raise SystemExit(2 if found.changing else 0)


@task(help={"inventory": INVENTORY_HELP, "host": HOST_HELP, "json": JSON_HELP})
@edge
def unlock(
    context: Context, inventory: str = LAB_INVENTORY, host: str = "", json: bool = False
) -> None:
    """Break a host's deployment lock; the next deployment undoes what its holder began."""
    from polydev.deployment import deploy_and_rollback

    _, described = described_host(inventory, host)
    broken = deploy_and_rollback.unlock(described)
    lock = broken["broken"]
    text = f"lock {lock['id']} of {lock['owner']} is broken" if lock else "nobody held the lock"
    answer(broken, as_json=json, text=f"{described.name}: {text}")

"""Actions of an operator on a host: plan, deploy, roll back, back up, move the database, unlock.

Each function makes a record and runs the change in a Transaction, which undoes it on failure.
"""

from __future__ import annotations

import getpass
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from polydev.deployment.connection import (
    HostConnection,
    HostRefused,
)
from polydev.deployment.history import records_of
from polydev.deployment.pyinfra_process import (
    DescribedHost,
    Plan,
    PlannedDeployment,
    Project,
    planned,
)
from polydev.deployment.timeouts_and_retention import BACKUP_SECONDS
from polydev.deployment.transaction import Transaction
from polydev.deployment_id import NO_COMMIT, commit_of, contains, new_deployment_id, utc_now
from polydev.deployment_records import (
    Record,
    backup_of,
    current_state,
    next_state,
    rollback_state,
)
from polydev.errors import DeployError, HealthGateFailed
from polydev.progress import Steps

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DeployOptions:
    """Options of a deployment.

    bootstrap      skip the health gate, for a host that is being set up
    wait_seconds   how long to wait for a lock that somebody else holds
    """

    target: str = "all"
    bootstrap: bool = False
    wait_seconds: float = 0
    data: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def connected(host: DescribedHost) -> Iterator[HostConnection]:
    connection = HostConnection(host.target)
    try:
        yield connection
    finally:
        connection.close()


def plan(project: Project, host: DescribedHost, options: DeployOptions, steps: Steps) -> Plan:
    """Return what a deployment would change; this changes nothing and needs no lock.

    Raises Unreachable, with ssh's message, if the host cannot be reached.
    """
    data = {**options.data, "target": options.target}
    with steps.step(f"{host.name}: plan"), connected(host) as connection:
        try:
            with (
                Path(os.devnull).open("w") as nowhere,
                planned(project, host.name, data, nowhere, plan_only=True) as deployment,
            ):
                found = deployment.plan
        except DeployError:
            # ssh says more clearly than pyinfra why a host cannot be reached.
            connection.command("true")
            raise
        return _with_commit_warning(found, project, records_of(connection))


def deploy(
    project: Project, host: DescribedHost, options: DeployOptions, steps: Steps, logs: Path
) -> Record:
    """Deploy to one host. Raises DeployError (after the host was restored), LockHeld."""
    change = _new(project, host, options.target, "deploy")
    with _kept_log(logs, change.id) as log_file, connected(host) as connection:
        with steps.step(f"{host.name}: connection"):
            connection.install_tool()
        data = {**options.data, "target": options.target, "deployment_id": change.id}
        transaction = Transaction(connection, host, change, steps, log_file)
        with transaction.locked("deploy", options.wait_seconds), ExitStack() as stack:
            with steps.step(f"{host.name}: plan"):
                plan_process = planned(project, host.name, data, log_file, plan_only=False)
                deployment = stack.enter_context(plan_process)
            deployment.plan = _with_commit_warning(deployment.plan, project, transaction.earlier)
            for warning in deployment.plan.warnings:
                steps.note(f"warning: {warning}")
            return _apply(transaction, deployment, options, steps)


def move_database(
    project: Project,
    host: DescribedHost,
    options: DeployOptions,
    steps: Steps,
    logs: Path,
) -> tuple[Record, dict[str, int]]:
    """Deploy the controller with PostgreSQL and the rows of SQLite; return the rows of each table.

    Raises DeployError (after the host was restored, with SQLite), LockHeld.
    """
    record = deploy(project, host, options, steps, logs)
    with connected(host) as connection:
        backups = connection.tool("backup", "list")["backups"]
    moved = next((each["moved"] for each in backups if each["id"] == record.id), None)
    return record, moved or {}


def move_options(*, replace_rows: bool, wait_seconds: float = 0) -> DeployOptions:
    """Return the options of a deployment that moves the database."""
    data = {"move_database": "replace" if replace_rows else "copy"}
    return DeployOptions("master-controller", wait_seconds=wait_seconds, data=data)


def _with_commit_warning(plan: Plan, project: Project, records: list[Record]) -> Plan:
    """Return the plan with a warning if it would undo changes that this checkout does not have."""
    warning = commit_warning(project.root, records) if plan.changing else None
    return replace(plan, warnings=(warning, *plan.warnings)) if warning else plan


def commit_warning(root: Path, records: list[Record]) -> str | None:
    """Return a warning if the host was deployed from a commit that this checkout does not have."""
    current = current_state(records)
    found = next((each for each in records if each.id == current), None)
    if found is None or found.commit in ("", NO_COMMIT):
        return None
    was = f"{found.host} was deployed by {found.who} from commit {found.commit}"
    match contains(root, found.commit):
        case True:
            return None
        case False:
            return f"{was}, which {commit_of(root)} does not contain: this undoes its changes"
        case _:
            return f"{was}, which this checkout does not have: this may undo its changes"


def _apply(
    transaction: Transaction, deployment: PlannedDeployment, options: DeployOptions, steps: Steps
) -> Record:
    changing, all_of_them = deployment.plan.changing, deployment.plan.operations

    def change() -> None:
        what = f"{len(changing)} of {len(all_of_them)} operations"
        transaction.record.operations = [operation.name for operation in changing]
        with steps.step(f"{transaction.host.name}: {what}") as step:
            transaction.permit_operations()

            def say(operation: str, fraction: float | None) -> None:
                transaction.require_lock()
                step.say(operation, fraction)
                if operation in transaction.record.operations and not steps.console.is_terminal:
                    steps.note(f"  {operation}")

            transaction.record.changes = deployment.go(say)

    return transaction.run(change if changing else None, gate=not options.bootstrap)


def rollback(
    project: Project,
    host: DescribedHost,
    to: str | None,
    steps: Steps,
    logs: Path,
    wait_seconds: float = 0,
) -> Record:
    """Restore the state of an earlier deployment, after waiting for a lock that is held.

    Raises DeployError if that is not possible (nothing is changed then), RollbackFailed.
    """
    change = _new(project, host, "all", "rollback")
    with _kept_log(logs, change.id) as log_file, connected(host) as connection:
        with steps.step(f"{host.name}: connection"):
            connection.install_tool()
        transaction = Transaction(connection, host, change, steps, log_file)
        with transaction.locked("rollback", wait_seconds):
            records = records_of(connection)
            state = rollback_state(records, to)
            backup = backup_of(state, records)
            assert backup is not None
            _verify_backup(connection, backup, state, records)

            def restore_state() -> None:
                with steps.step(f"{host.name}: restore {state}") as step:
                    transaction.restore(backup, step)
                    transaction.record.state = state
                    transaction.record.changes = 1

            try:
                return transaction.run(restore_state, gate=True)
            except HealthGateFailed as error:
                raise _unhealthy_state(error, state, backup, records) from error


def _unhealthy_state(
    error: HealthGateFailed, state: str, backup: str, records: list[Record]
) -> HealthGateFailed:
    """Return the error for a state that was unhealthy when it was backed up, with alternatives."""
    found = (
        f"{error.message}\n{state} was restored as it was when {backup} backed it up, with all "
        "changes made by hand until then"
    )
    further = next_state(records, state)
    instead = [f"./inv rollback --to {further} goes further back"] if further else []
    instead.append(f"check out the commit of {state} and run ./inv deploy, which repairs the host")
    return HealthGateFailed(found, "; or ".join(instead))


def _verify_backup(
    connection: HostConnection, backup: str, state: str, records: list[Record]
) -> None:
    try:
        connection.tool("backup", "verify", "--id", backup, timeout_seconds=BACKUP_SECONDS)
    except HostRefused as error:
        other = next_state(records, state)
        hint = f"./inv rollback --to {other}" if other else "no older state has a backup"
        raise HostRefused(f"cannot roll back to {state}: {error.message}", hint) from error


def back_up(
    project: Project, host: DescribedHost, steps: Steps, logs: Path, wait_seconds: float = 0
) -> Record:
    """Back up a host without a deployment, after waiting for a lock that is held."""
    change = _new(project, host, "all", "backup")
    with _kept_log(logs, change.id) as log_file, connected(host) as connection:
        connection.install_tool()
        transaction = Transaction(connection, host, change, steps, log_file)
        with transaction.locked("backup", wait_seconds):
            return transaction.run(lambda: None, gate=False)


def unlock(host: DescribedHost) -> dict[str, Any]:
    """Break the host's lock, whoever holds it; return the broken one."""
    with connected(host) as connection:
        connection.install_tool()
        return connection.tool("lock", "break")


def _new(project: Project, host: DescribedHost, target: str, kind: Any) -> Record:
    deployment_id = new_deployment_id(project.root)
    return Record(
        id=deployment_id,
        kind=kind,
        target=target,
        host=host.name,
        started_at=utc_now(),
        who=f"{getpass.getuser()}@{socket.gethostname()}",
        commit=deployment_id.partition("-")[2],
    )


@contextmanager
def _kept_log(logs: Path, deployment_id: str) -> Iterator[IO[str]]:
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / f"deployment-{deployment_id}.log").open("a") as file:
        yield file

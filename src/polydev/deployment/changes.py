"""What an operator does to a host: plan, deploy, roll back, back up, unlock.

Each makes the record of its change and hands the work to a Transaction, which keeps it whole.
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
from polydev.deployment.pyinfra_process import Applying, DescribedHost, Plan, Project, planned
from polydev.deployment.transaction import BACKUP_SECONDS, Transaction
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
    """`bootstrap` asks nothing of the health of a host that is being set up.

    `wait_seconds` says how long a lock that somebody else holds is waited for.
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
    """What a deployment would change now; nothing is changed, and no lock is needed.

    Raises Unreachable, with the words of ssh, where the host cannot be reached.
    """
    data = {**options.data, "target": options.target}
    with steps.step(f"{host.name}: plan"), connected(host) as connection:
        try:
            with (
                Path(os.devnull).open("w") as nowhere,
                planned(project, host.name, data, nowhere, plan_only=True) as applying,
            ):
                found = applying.plan
        except DeployError:
            # ssh says better than pyinfra why a host cannot be reached, as in a deployment.
            connection.command("true")
            raise
        return _with_other_line(found, project, records_of(connection))


def deploy(
    project: Project, host: DescribedHost, options: DeployOptions, steps: Steps, logs: Path
) -> Record:
    """Deploy to one host. Raises DeployError (after the host went back), LockHeld."""
    change = _new(project, host, options.target, "deploy")
    with _kept_log(logs, change.id) as log_file, connected(host) as connection:
        with steps.step(f"{host.name}: connection"):
            connection.install_tool()
        data = {**options.data, "target": options.target, "deployment_id": change.id}
        transaction = Transaction(connection, host, change, steps, log_file)
        with transaction.locked("deploy", options.wait_seconds), ExitStack() as stack:
            with steps.step(f"{host.name}: plan"):
                plan_process = planned(project, host.name, data, log_file, plan_only=False)
                applying = stack.enter_context(plan_process)
            applying.plan = _with_other_line(applying.plan, project, transaction.earlier)
            for warning in applying.plan.warnings:
                steps.note(f"warning: {warning}")
            return _apply(transaction, applying, options, steps)


def move_database(
    project: Project,
    host: DescribedHost,
    options: DeployOptions,
    steps: Steps,
    logs: Path,
) -> tuple[Record, dict[str, int]]:
    """Deploy the controller with PostgreSQL and what SQLite holds; the rows of each table.

    Raises DeployError (after the host went back to SQLite), LockHeld.
    """
    record = deploy(project, host, options, steps, logs)
    with connected(host) as connection:
        backups = connection.tool("backup", "list")["backups"]
    moved = next((each["moved"] for each in backups if each["id"] == record.id), None)
    return record, moved or {}


def move_options(*, replace_rows: bool, wait_seconds: float = 0) -> DeployOptions:
    """Return what a deployment is told that moves the database."""
    data = {"move_database": "replace" if replace_rows else "copy"}
    return DeployOptions("master-controller", wait_seconds=wait_seconds, data=data)


def _with_other_line(plan: Plan, project: Project, records: list[Record]) -> Plan:
    """Return the plan, which warns of changes that this checkout does not know and takes back."""
    warning = other_line(project.root, records) if plan.changing else None
    return replace(plan, warnings=(warning, *plan.warnings)) if warning else plan


def other_line(root: Path, records: list[Record]) -> str | None:
    """Return a warning where the host was deployed from a commit that is not in this checkout."""
    current = current_state(records)
    found = next((each for each in records if each.id == current), None)
    if found is None or found.commit in ("", NO_COMMIT):
        return None
    was = f"{found.host} was deployed by {found.who} from commit {found.commit}"
    match contains(root, found.commit):
        case True:
            return None
        case False:
            return f"{was}, which {commit_of(root)} does not contain: its changes are taken back"
        case _:
            return f"{was}, which this checkout does not know: its changes may be taken back"


def _apply(
    transaction: Transaction, applying: Applying, options: DeployOptions, steps: Steps
) -> Record:
    changing, all_of_them = applying.plan.changing, applying.plan.operations

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

            transaction.record.changes = applying.go(say)

    return transaction.run(change if changing else None, gate=not options.bootstrap)


def rollback(
    project: Project,
    host: DescribedHost,
    to: str | None,
    steps: Steps,
    logs: Path,
    wait_seconds: float = 0,
) -> Record:
    """Bring a host back to the state of an earlier deployment. A lock that is held is waited for.

    Raises DeployError where that is not possible (nothing is changed then), RollbackFailed.
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
            _require_sound(connection, backup, state, records)

            def change_back() -> None:
                with steps.step(f"{host.name}: back to {state}") as step:
                    transaction.restore(backup, step)
                    transaction.record.state = state
                    transaction.record.changes = 1

            try:
                return transaction.run(change_back, gate=True)
            except HealthGateFailed as error:
                raise _not_well_then(error, state, backup, records) from error


def _not_well_then(
    error: HealthGateFailed, state: str, backup: str, records: list[Record]
) -> HealthGateFailed:
    """Say that the state was not well when its backup was made, and where to go instead."""
    found = (
        f"{error.message}\n{state} was restored as {backup} found it: what was changed by hand "
        "until then is in that backup too"
    )
    further = next_state(records, state)
    instead = [f"./inv rollback --to {further} goes further back"] if further else []
    instead.append(f"check out the commit of {state} and ./inv deploy, which mends the host too")
    return HealthGateFailed(found, "; or ".join(instead))


def _require_sound(
    connection: HostConnection, backup: str, state: str, records: list[Record]
) -> None:
    try:
        connection.tool("backup", "verify", "--id", backup, timeout_seconds=BACKUP_SECONDS)
    except HostRefused as error:
        other = next_state(records, state)
        hint = f"./inv rollback --to {other}" if other else "no older one has a backup"
        raise HostRefused(f"cannot go back to {state}: {error.message}", hint) from error


def back_up(
    project: Project, host: DescribedHost, steps: Steps, logs: Path, wait_seconds: float = 0
) -> Record:
    """A backup by hand, outside any deployment. A lock that is held is waited for."""
    change = _new(project, host, "all", "backup")
    with _kept_log(logs, change.id) as log_file, connected(host) as connection:
        connection.install_tool()
        transaction = Transaction(connection, host, change, steps, log_file)
        with transaction.locked("backup", wait_seconds):
            return transaction.run(lambda: None, gate=False)


def unlock(host: DescribedHost) -> dict[str, Any]:
    """Break the host's lock, whoever holds it; what was broken."""
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

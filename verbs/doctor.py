"""doctor: check this machine and a host, and say what to do about problems."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from invoke.context import Context

from polydev.cli import answer, edge, task
from polydev.errors import ConfigError, DeployError
from polydev.settings import Settings
from polydev.suggested_commands import for_same_host
from verbs.deploy import described_host
from verbs.paths_and_help import HOST_HELP, INVENTORY_HELP, JSON_HELP, LAB_INVENTORY, ROOT
from verbs.text_tables import table_text

if TYPE_CHECKING:
    from polydev.client.doctor_findings import DoctorFinding

PACKAGES = ROOT / "requirements" / "apt.txt"


@task(help={"inventory": INVENTORY_HELP, "host": HOST_HELP, "json": JSON_HELP})
@edge
def doctor(
    context: Context, inventory: str = LAB_INVENTORY, host: str = "", json: bool = False
) -> None:
    """Check this machine and a host, and say what to do: exit status 1 if there is a problem."""
    from polydev.client.doctor_findings import has_problem

    found = [_with_options(each) for each in [*_this_machine(), *_host(inventory, host)]]
    answer(
        [finding.as_dict() for finding in found],
        as_json=json,
        text=table_text(("", "where", "what", "found"), [_row(finding) for finding in found]),
    )
    raise SystemExit(1 if has_problem(found) else 0)


def _with_options(finding: DoctorFinding) -> DoctorFinding:
    """Return the finding with commands that name the checked host."""
    return replace(finding, todo=for_same_host(finding.todo) if finding.todo else None)


def _row(finding: DoctorFinding) -> tuple[str, ...]:
    todo = f"\n→ {finding.todo}" if finding.todo else ""
    return finding.state, finding.where, finding.name, f"{finding.summary}{todo}"


def _this_machine() -> list[DoctorFinding]:
    from polydev.client.operator_machine_checks import gather, machine_findings, wanted_packages

    packages = wanted_packages(PACKAGES.read_text())
    return machine_findings(gather(Settings.from_environment(), packages, _golden_kernel()))


def _golden_kernel() -> Path | None:
    from polydev.image_layout import KERNEL
    from verbs.golden import open_store

    store = open_store()
    digest = store.golden()
    return store.path(digest) / KERNEL if digest else None


def _host(inventory: str, host: str) -> list[DoctorFinding]:
    from polydev.client.doctor_findings import DoctorFinding, State
    from polydev.client.host_checks import host_findings, unreachable_finding
    from polydev.client.host_facts import gather

    try:
        _, described = described_host(inventory, host)
    except ConfigError as error:
        # Without a lab and without options, only this machine is meant.
        is_meant = inventory != LAB_INVENTORY or host
        state: State = "problem" if is_meant else "warning"
        return [DoctorFinding(inventory, "inventory", state, error.message, error.hint)]
    try:
        facts = gather(described.target)
    except DeployError as error:
        return [unreachable_finding(described.name, error)]
    return host_findings(described.name, facts)

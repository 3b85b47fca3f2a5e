"""host.*: a shell on a host and its journal, over SSH."""

from __future__ import annotations

import os
from contextlib import suppress

from invoke.context import Context

from polydev.cli import answer, edge, require_at_least, stderr, task
from polydev.errors import ConfigError, DeployError
from verbs.deploy import described_host
from verbs.paths_and_help import HOST_HELP, INVENTORY_HELP, JSON_HELP, LAB_INVENTORY

UNITS = ("master-controller.service", "microvm@*.service", "polydev-*.service")
LOGS_SECONDS = 120.0


@task(help={"inventory": INVENTORY_HELP, "host": HOST_HELP})
@edge
def shell(context: Context, inventory: str = LAB_INVENTORY, host: str = "") -> None:
    """Open a root shell on a host, or run what is piped in. Ends with its status."""
    from polydev.processes import hand_over

    _, described = described_host(inventory, host)
    hand_over(described.target.shell_argv(is_terminal=os.isatty(0)))


@task(
    help={
        "unit": "only this unit's, such as ssh.service (default: controller, VMs, network); "
        "all: the whole journal",
        "lines": "how many of the newest",
        "follow": "go on with what comes, until Ctrl-C",
        "inventory": INVENTORY_HELP,
        "host": HOST_HELP,
        "json": JSON_HELP,
    }
)
@edge
def logs(
    context: Context,
    unit: str = "",
    lines: int = 100,
    follow: bool = False,
    inventory: str = LAB_INVENTORY,
    host: str = "",
    json: bool = False,
) -> None:
    """Show a host's journal of the controller, the VMs and their network."""
    from polydev.processes import call, run
    from polydev.ssh import SSH_FAILED

    if follow and json:
        raise ConfigError("--follow and --json exclude each other", "remove one of them")
    require_at_least(1, "lines", lines)
    _, described = described_host(inventory, host)
    argv = described.target.argv(*journal_words(unit, lines, follow=follow))
    if follow:
        with suppress(KeyboardInterrupt):  # the usual way to end it
            raise SystemExit(call(argv))
        return
    done = run(argv, check=False, timeout_seconds=LOGS_SECONDS)
    if done.status == SSH_FAILED:
        raise DeployError(
            f"cannot reach {described.name} over SSH: {done.stderr.strip()}",
            f"try: {described.target.by_hand()}",
        )
    if done.status != 0:
        raise DeployError(f"{described.name}: journalctl failed: {done.stderr.strip()}")
    said = done.stdout.splitlines()
    if json:
        answer({"host": described.name, "lines": said}, as_json=True, text="")
        return
    if not said:
        stderr.print(f"the journal of {described.name} has no entries of {unit or 'our units'}")
        return
    print(*said, sep="\n")


def journal_words(unit: str, lines: int, *, follow: bool) -> list[str]:
    """Return the command that shows this part of the journal."""
    units = {"": UNITS, "all": ()}.get(unit, (unit,))
    words = ["journalctl", "--no-pager", "--quiet", f"--lines={lines}", *(["--follow"] * follow)]
    return [*words, *(f"--unit={each}" for each in units)]

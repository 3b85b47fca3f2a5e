"""lab.*: throw-away hosts on this machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from invoke.context import Context

from polydev.cli import answer, edge, task
from polydev.errors import ConfigError
from polydev.settings import Settings
from verbs.paths_and_help import JSON_HELP, LAB_HELP, lab_name

if TYPE_CHECKING:
    from polydev.lab import Lab

SUITE_HELP = "Debian release of a new lab: bookworm (Debian 12, the default) or trixie (Debian 13)"


@task(help={"name": LAB_HELP, "suite": SUITE_HELP, "json": JSON_HELP})
@edge
def up(context: Context, name: str = "", suite: str = "", json: bool = False) -> None:
    """Start a lab: a throw-away Debian host in a container, reached over SSH."""
    from polydev.lab import up
    from polydev.progress import Steps

    made = up(name or lab_name(), Settings.from_environment(), Steps(), suite or None)
    choice = "" if made.name == "dev" else f"POLYDEV_LAB={made.name} "
    answer(
        _lab_fields(made),
        as_json=json,
        text=f"lab {made.name} ({made.suite}) runs at {made.address}\n"
        f"  {choice}./inv deploy\n  {choice}./inv lab.shell",
    )


def _lab_fields(lab: Lab) -> dict[str, Any]:
    return {
        "name": lab.name,
        "suite": lab.suite,
        "address": lab.address,
        "sshPort": lab.ssh_port,
        "user": lab.user,
        "key": str(lab.key),
        "knownHosts": str(lab.known_hosts),
    }


@task(help={"name": LAB_HELP, "json": JSON_HELP})
@edge
def down(context: Context, name: str = "", json: bool = False) -> None:
    """End a lab and remove all that it wrote."""
    from polydev.lab import down

    ended = down(name or lab_name(), Settings.from_environment())
    text = f"lab {name or lab_name()} " + ("is removed" if ended else "does not exist")
    answer({"ended": ended}, as_json=json, text=text)


@task(name="list", help={"json": JSON_HELP})
@edge
def list_labs(context: Context, json: bool = False) -> None:
    """List the running labs."""
    from polydev.lab import labs

    found = [lab for lab in labs(Settings.from_environment()) if lab.running()]
    answer(
        [_lab_fields(lab) for lab in found],
        as_json=json,
        text="\n".join(f"{lab.name:<12}{lab.suite:<10}{lab.address}" for lab in found)
        or "no lab runs; ./inv lab.up starts one",
    )


@task(help={"name": LAB_HELP})
@edge
def shell(context: Context, name: str = "") -> None:
    """Open a root shell in a lab without SSH, or run what is piped in. Ends with its status."""
    from polydev.lab import shell
    from polydev.processes import hand_over

    hand_over(shell(_lab(name), is_terminal=os.isatty(0)))


@task(help={"name": LAB_HELP})
@edge
def logs(context: Context, name: str = "") -> None:
    """Show a lab's journal and console; only the console if it is powered off."""
    from polydev.lab import labs, logs

    wanted = name or lab_name()
    known = {lab.name: lab for lab in labs(Settings.from_environment())}
    if wanted not in known:
        raise ConfigError(f"there is no lab {wanted}", f"./inv lab.up --name {wanted}")
    found = logs(known[wanted])
    print(found.journal, found.console, sep="\n")


def _lab(name: str) -> Lab:
    from polydev.lab import find

    wanted = name or lab_name()
    lab = find(wanted, Settings.from_environment())
    if lab is None:
        raise ConfigError(f"lab {wanted} does not run", f"start it: ./inv lab.up --name {wanted}")
    return lab

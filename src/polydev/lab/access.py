"""Commands in a running lab: over SSH as `deploy`, or as root through its namespaces."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polydev.errors import ConfigError, LabError
from polydev.lab.container import init_pid
from polydev.lab.lab_record import Lab
from polydev.processes import Completed, run
from polydev.ssh import GREETING_SECONDS, SshTarget

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Logs:
    """The logs of a lab: its journal, and its console since the lab was made."""

    journal: str
    console: str


def ssh_argv(
    lab: Lab,
    command: Sequence[str],
    user: str | None = None,
    *,
    timeout_seconds: int = GREETING_SECONDS,
) -> list[str]:
    """Return the SSH command line of a command, with the lab's key and its known host key only."""
    target = SshTarget(
        name=lab.name,
        hostname=lab.address,
        user=user or lab.user,
        port=lab.ssh_port,
        key=lab.key,
        known_hosts=lab.known_hosts,
        config=Path("none"),
    )
    options = ["-o", "GlobalKnownHostsFile=/dev/null"]
    return [*target.ssh_argv(*options, timeout_seconds=timeout_seconds), "--", shlex.join(command)]


def run_inside(
    lab: Lab,
    argv: Sequence[str],
    *,
    input: str | None = None,
    timeout_seconds: float | None = None,
    check: bool = True,
) -> Completed:
    """Run a command as root in the lab's namespaces, whatever its SSH and network do.

    Raises LabError when the lab does not run, CommandError as `polydev.processes.run` does.
    """
    words = [*inside_argv(_init(lab)), *argv]
    return run(words, input=input, timeout_seconds=timeout_seconds, check=check)


def shell(lab: Lab, *, is_terminal: bool) -> list[str]:
    """Return the command of a root shell in the lab, for `polydev.processes.hand_over`.

    A shell that reads a pipe ends with it. An interactive one gets a terminal of the lab's own from
    `script`, so that job control works.
    """
    if not is_terminal:
        return [*inside_argv(_init(lab)), "bash", "--login"]
    terminal = os.environ.get("TERM", "dumb")
    return [
        *inside_argv(_init(lab), terminal),
        *("script", "--quiet", "--return", "--command", "exec bash --login", "/dev/null"),
    ]


def logs(lab: Lab) -> Logs:
    """Return the journal of a running lab, and the console of any lab."""
    journal = ""
    if lab.running():
        journal = run_inside(lab, ["journalctl", "--no-pager", "--output=short-iso"]).stdout
    console = lab.console_log.read_text(errors="replace") if lab.console_log.exists() else ""
    return Logs(journal, console)


def inside_argv(init: int, terminal: str = "dumb") -> list[str]:
    """Return the words before a command that run it as root beside process `init`."""
    return [
        *("nsenter", "--target", str(init), "--all", "--"),
        *(
            "env",
            "--chdir=/",
            "-i",
            f"PATH={PATH}",
            "HOME=/root",
            f"TERM={terminal}",
            "LANG=C.UTF-8",
        ),
    ]


def _init(lab: Lab) -> int:
    if os.geteuid() != 0:
        raise ConfigError("a lab's namespaces need root", "run it again with sudo")
    init = init_pid(lab) if lab.running() else None
    if init is None:
        raise LabError(f"lab {lab.name} does not run", f"./inv lab.up --name {lab.name}")
    return init

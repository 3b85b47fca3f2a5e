"""Run a program with the properties of a unit, to try what the unit may do."""

from __future__ import annotations

import shlex

from tests.hosts import DeployedHost

# Settings of the unit's program and start. All others of its section confine it.
NOT_CONFINING = {
    *("ExecStart", "ExecStartPre", "Type", "NotifyAccess", "Environment", "TimeoutStartSec"),
    *("Restart", "RestartSec", "StateDirectory", "RuntimeDirectory", "RuntimeDirectoryPreserve"),
}


def confining_properties(unit: str, slot: int) -> list[str]:
    """Return the confining settings of a unit from the output of `systemctl cat`."""
    section, found = "", []
    for line in unit.splitlines():
        if line.startswith("["):
            section = line
        name, is_setting, _ = line.partition("=")
        if section == "[Service]" and is_setting and not line.startswith("#"):
            found += [line.replace("%i", str(slot))] if name not in NOT_CONFINING else []
    return found


def output_with(host: DeployedHost, properties: list[str], *argv: str) -> str:
    """Return the output of a process with these properties."""
    words = ["systemd-run", "--quiet", "--collect", "--pipe", "--wait"]
    words += [f"--property={each}" for each in properties]
    return host.inside(shlex.join([*words, *argv]))

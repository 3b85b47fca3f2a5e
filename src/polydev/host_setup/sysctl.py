"""Kernel settings: set now, and in a file for the next start."""

from __future__ import annotations

import shlex

from pyinfra.api.command import StringCommand
from pyinfra.context import host

from polydev.host_setup.host_files_and_units import SYSCTL_FILE, TOOL
from polydev.host_setup.pyinfra_operations import show_diff, sysctl_value, text_file
from polydev.host_setup.pyinfra_types import Commands, concern, operation

VALUES = {
    "net.ipv4.ip_forward": "1",  # VMs reach the internet through the host
    "net.core.somaxconn": "4096",  # the controller's backlog while releases change
}


def sysctl_text(values: dict[str, str]) -> str:
    return "".join(f"{key} = {value}\n" for key, value in values.items())


@concern("Kernel settings")
def kernel() -> None:
    text_file(SYSCTL_FILE, sysctl_text(VALUES))
    for key, value in VALUES.items():
        sysctl_value(name=f"sysctl {key}", key=key, value=value)


@operation
def mend_settings(differences: list[str] | None, document: str) -> Commands:
    """Remove lines of other files that would override the declared settings at the next start.

    Not files.line: the host tool knows which of all files wins. `differences` is its report;
    without one (None) it checks all settings.
    """
    if differences == []:
        host.noop("no other file overrides our settings")
        return
    show_diff("\n".join(differences or []))
    given = f"printf %s {shlex.quote(document)}"
    yield StringCommand(f"{given} | {TOOL} settings mend --host /dev/stdin")


@concern("Settings")
def overriding_settings(differences: list[str] | None, document: str) -> None:
    """Check settings of the kernel, the journal, folders and the network against other files."""
    mend_settings(name="files of others", differences=differences, document=document)

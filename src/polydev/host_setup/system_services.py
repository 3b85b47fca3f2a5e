"""Services of the host itself that we configure: its SSH daemon and its journal."""

from __future__ import annotations

from typing import Any

from polydev.host_setup.host_files_and_units import JOURNAL_UNIT, OLD_SSHD_FILE, SSH_UNIT, SSHD_FILE
from polydev.host_setup.inventory_values import HostData
from polydev.host_setup.pyinfra_operations import directory, remove_file, template
from polydev.host_setup.pyinfra_types import concern
from polydev.host_setup.render import UNITS
from polydev.host_setup.units import unit, unit_file

SSHD_SETTINGS = {
    "PermitRootLogin": "no",
    "PasswordAuthentication": "no",
    "KbdInteractiveAuthentication": "no",
    "PermitEmptyPasswords": "no",
    "PubkeyAuthentication": "yes",
    # A deployment holds its lock while its connection lives: a dead one must be noticed, and one
    # whose side is only busy must stay.
    "ClientAliveInterval": "5",
    "ClientAliveCountMax": "6",
}
SSHD_DROP_IN = "ssh.service.d/polydev.conf"
JOURNAL_FILE = "/etc/systemd/journald.conf.d/50-polydev.conf"
JOURNAL_DROP_IN = "systemd-journald.service.d/polydev.conf"


def journal_values(site: HostData) -> dict[str, Any]:
    return {"journal_max_mib": site.journal_max_mib}


def sshd_values() -> dict[str, Any]:
    return {"sshd_settings": SSHD_SETTINGS}


def effective_sshd() -> dict[str, str]:
    """Return the settings under the names of `sshd -T`."""
    return {name.lower(): value for name, value in SSHD_SETTINGS.items()}


@concern("SSH")
def ssh(differences: list[str]) -> None:
    settings = template(SSHD_FILE, sshd_values())
    remove_file(name=OLD_SSHD_FILE, path=OLD_SSHD_FILE)
    directory(f"{UNITS}/ssh.service.d")
    config = unit_file(SSHD_DROP_IN, {}, settings)
    unit(
        name=SSH_UNIT,
        unit=SSH_UNIT,
        config=config.hash,
        files=config.files,
        differences=differences,
    )


@concern("Journal")
def journal(site: HostData) -> None:
    directory("/etc/systemd/journald.conf.d")
    settings = template(JOURNAL_FILE, journal_values(site))
    directory(f"{UNITS}/systemd-journald.service.d")
    config = unit_file(JOURNAL_DROP_IN, {}, settings)
    unit(name=JOURNAL_UNIT, unit=JOURNAL_UNIT, config=config.hash, files=config.files)

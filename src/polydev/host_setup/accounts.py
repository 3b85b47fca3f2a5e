"""System users of the controller and the VMs, our folders and their permissions."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from typing import Any

from pyinfra.api.command import StringCommand
from pyinfra.context import host

from polydev.host_layout import (
    BACKUPS,
    CONTROLLER_CONFIG,
    CONTROLLER_HOME,
    CONTROLLER_ROOT,
    DEPLOYMENTS,
)
from polydev.host_setup.host_files_and_units import (
    BRIDGE,
    HOST_FILE,
    NETDEV_FILE,
    NETWORK_FILE,
    SYSCTL_FILE,
    TOOL,
)
from polydev.host_setup.inventory_values import HostData
from polydev.host_setup.network import network_values, slot_config
from polydev.host_setup.pyinfra_operations import (
    create_tmpfiles_folders,
    directory,
    show_diff,
    template,
    text_file,
)
from polydev.host_setup.pyinfra_types import Commands, concern, operation
from polydev.host_setup.render import own_units, render
from polydev.host_setup.secret_files import CERTIFICATE, SECRETS
from polydev.host_setup.sysctl import VALUES, sysctl_text
from polydev.host_setup.system_services import JOURNAL_FILE, effective_sshd, journal_values
from polydev.hosttool.accounts import SYSUSERS as USERS_FILE
from polydev.hosttool.accounts import Account
from polydev.image_layout import STORE, TEMPLATES

CONTROLLER_USER = "polydev-controller"
CONTROLLER_COMMENT = "Controller of the browser VMs"
VM_USER = "polydev-vm-"
VM_ROOT = "/var/lib/microvm"
FOLDERS_FILE = "/etc/tmpfiles.d/polydev.conf"


@dataclass(frozen=True)
class Folder:
    """A folder of the host, its mode without a leading zero."""

    path: str
    mode: str = "755"
    user: str = "root"
    group: str = "root"

    @property
    def state(self) -> tuple[str, str, str]:
        return self.mode, self.user, self.group


FOLDERS = (
    Folder(str(BACKUPS), "700"),
    Folder(str(DEPLOYMENTS)),
    Folder(str(CONTROLLER_ROOT)),
    Folder(f"{CONTROLLER_ROOT}/releases"),
    Folder(f"{CONTROLLER_ROOT}/wheels"),
    Folder("/etc/polydev"),
    Folder(str(CONTROLLER_CONFIG), "750", group=CONTROLLER_USER),
    Folder(str(CONTROLLER_HOME), "700", CONTROLLER_USER, CONTROLLER_USER),
    Folder("/var/lib/firecracker"),
    Folder("/var/lib/firecracker/snapshots"),
    Folder(str(STORE)),
    Folder(str(STORE / TEMPLATES)),
    Folder(VM_ROOT),
)


def vm_user(slot: int) -> str:
    return f"{VM_USER}{slot}"


def all_folders(site: HostData) -> list[Folder]:
    """Return the fixed folders and one for each slot.

    The controller makes each VM's folder in its slot's folder, whose setgid bit gives it the
    slot's group. The VM's user may write in that folder only.
    """
    slots = (
        Folder(f"{VM_ROOT}/{slot}", "2750", CONTROLLER_USER, vm_user(slot))
        for slot in site.slot_numbers
    )
    return [*FOLDERS, *slots]


def host_json(site: HostData, units: list[str]) -> str:
    """Return the declared state of the host, which the host tool and its health gate compare."""
    known = {
        "bridge": {"name": BRIDGE, "address": str(site.bridge_address)},
        "slots": list(site.slot_numbers),
        "resolvers": [str(each) for each in site.resolvers],
        "translatesNames": site.translates_names,
        "slotConfig": slot_config(site),
        "controllerAddress": site.controller_address,
        "controllerPort": site.controller_port,
        "controllerCertificate": f"{SECRETS}/{CERTIFICATE}" if site.speaks_tls else None,
        "sshd": effective_sshd(),
        "accounts": [asdict(each) for each in declared_accounts(site)],
        "settings": {path: render(path, values) for path, values in _settings(site).items()}
        | {SYSCTL_FILE: sysctl_text(VALUES)},
        "units": units,
        "ownUnits": own_units(),
    }
    return json.dumps(known, indent=1) + "\n"


def _settings(site: HostData) -> dict[str, dict[str, Any]]:
    """Return the templates whose settings other files may override, each with its values."""
    network = network_values(site)
    return {
        JOURNAL_FILE: journal_values(site),
        FOLDERS_FILE: folder_values(site),
        NETDEV_FILE: network,
        NETWORK_FILE: network,
    }


def folder_values(site: HostData) -> dict[str, Any]:
    return {
        "controller_comment": CONTROLLER_COMMENT,
        "controller_user": CONTROLLER_USER,
        "controller_home": str(CONTROLLER_HOME),
        "vm_user": VM_USER,
        "slots": site.slot_numbers,
        "folders": all_folders(site),
    }


def declared_accounts(site: HostData) -> list[Account]:
    return [
        Account(CONTROLLER_USER, CONTROLLER_COMMENT, str(CONTROLLER_HOME)),
        *(Account(vm_user(number), f"VM of slot {number}") for number in site.slot_numbers),
    ]


@operation
def mend_accounts(differences: list[str] | None, document: str) -> Commands:
    """Create the declared users and undo changes to them.

    Not server.user: it does not see changes to passwords, sudo rights and group members.
    `differences` come from the host tool; without it (None) all users are created, which leaves
    correct ones as they are. The file of `document` is written later: it names these users' groups.
    """
    if differences == []:
        host.noop("all users are as declared")
        return
    show_diff("\n".join(differences or ["+ users"]))
    given = f"printf %s {shlex.quote(document)}"
    yield StringCommand(f"{given} | {TOOL} accounts mend --host /dev/stdin")


@operation
def mend_permissions(writable: list[str]) -> Commands:
    """Take write permission from all but root, and others' access to the controller's files.

    Not files.file: it knows neither ACLs nor what lies below a folder.
    """
    if not writable:
        host.noop("only root may write to these files")
        return
    show_diff("\n".join(f"- {each}" for each in writable))
    yield StringCommand(f"{TOOL} permissions mend")


@concern("Accounts and folders")
def accounts(
    site: HostData, declared: str, differences: list[str] | None, writable: list[str]
) -> None:
    folders = all_folders(site)
    values = folder_values(site)
    directory("/etc/sysusers.d")
    template(USERS_FILE, values)
    mend_accounts(name="users", differences=differences, document=declared)
    template(FOLDERS_FILE, values)
    states = {folder.path: folder.state for folder in folders}
    create_tmpfiles_folders(name="folders", file=FOLDERS_FILE, folders=states)
    text_file(HOST_FILE, declared)
    mend_permissions(name="rights to write", writable=writable)

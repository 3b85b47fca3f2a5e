"""Users without a login, and the folders that hold what is ours."""

from __future__ import annotations

import json

from pyinfra.operations import server

from polydev.deploys.data import HostData
from polydev.deploys.operations import directory, text_file
from polydev.deploys.typed import concern

CONTROLLER_USER = "polydev-controller"
VM_USER = "polydev-vm"
HOST_FILE = "/etc/polydev/host.json"

FOLDERS = (
    ("/opt/polydev-ai/backups", "700", "root", "root"),
    ("/opt/polydev-ai/deployments", "755", "root", "root"),
    ("/opt/master-controller", "755", "root", "root"),
    ("/opt/master-controller/releases", "755", "root", "root"),
    ("/opt/master-controller/wheels", "755", "root", "root"),
    ("/etc/polydev", "755", "root", "root"),
    ("/etc/master-controller", "750", "root", CONTROLLER_USER),
    ("/var/lib/master-controller", "700", CONTROLLER_USER, CONTROLLER_USER),
    ("/var/lib/firecracker", "755", "root", "root"),
    ("/var/lib/firecracker/snapshots", "755", "root", "root"),
    ("/var/lib/firecracker/snapshots/base", "755", "root", "root"),
)


def host_json(site: HostData, units: list[str]) -> str:
    """What the host tool knows of its host, the health gate's expectations among it."""
    known = {
        "bridge": {"name": "br-vm", "address": str(site.bridge_address)},
        "slots": list(site.slot_numbers),
        "resolvers": [str(each) for each in site.resolvers],
        "translatesNames": site.translates_names,
        "controllerAddress": site.controller_address,
        "controllerPort": site.controller_port,
        "units": units,
    }
    return json.dumps(known, indent=1) + "\n"


@concern("Accounts and folders")
def accounts(site: HostData, units: list[str]) -> None:
    for user, home in ((CONTROLLER_USER, "/var/lib/master-controller"), (VM_USER, "/nonexistent")):
        server.user(  # noqa: S604  (its shell is a program's name)
            name=user,
            user=user,
            home=home,
            shell="/usr/sbin/nologin",
            system=True,
            ensure_home=False,
        )
    for path, mode, owner, group in FOLDERS:
        directory(path, mode=mode, user=owner, group=group)
    text_file(HOST_FILE, host_json(site, units))

"""The sandbox of a VM's process, tried by a process with the properties of the VM's unit."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests import forbidden_calls
from tests.hosts import DeployedHost
from tests.walls import confining_properties, output_with

SLOT = 2
CONTROLLER = "master-controller.service"
PYTHON = "/opt/master-controller/current/venv/bin/python"
FOLDER = "/run/walls/one"
READ = """
import sys
from pathlib import Path
from polydev.controller.machines.console_stream import tail
from polydev.errors import Error
for name in sys.argv[1:]:
    try:
        print(tail(Path(name), 10)[0].decode().strip())
    except Error as error:
        print(error.message)
"""
# systemd's filters of address families and namespaces answer with these instead of EPERM.
REFUSED_OTHERWISE = {
    **{f"socket({family})": "EAFNOSUPPORT" for family in forbidden_calls.FAMILIES},
    "clone3(CLONE_NEWUSER)": "ENOSYS",
    "openat2(S_ISUID)": "ENOSYS",
}
UNPRIVILEGED_MAY = ("mkdirat", "symlinkat", "linkat", "socket(AF_INET)")


def outcomes(host: DeployedHost, properties: list[str]) -> dict[str, dict[str, str]]:
    """Return the result of each call in a process with these properties."""
    program = Path(forbidden_calls.__file__).read_text()
    said = output_with(host, properties, "/usr/bin/python3", "-c", program)
    found: dict[str, dict[str, str]] = json.loads(said)
    return found


def reached(outcomes: dict[str, str]) -> dict[str, str]:
    """Return the calls that the filter did not refuse."""
    return {
        name: outcome
        for name, outcome in outcomes.items()
        if outcome not in ("EPERM", REFUSED_OTHERWISE.get(name))
    }


@pytest.fixture(scope="module")
def properties(deployed: DeployedHost) -> list[str]:
    found = confining_properties(deployed.inside(f"systemctl cat microvm@{SLOT}.service"), SLOT)
    assert f"User=polydev-vm-{SLOT}" in found
    return found


def test_forbidden_system_calls_are_refused_also_by_io_uring(
    deployed: DeployedHost, properties: list[str]
) -> None:
    found = outcomes(deployed, properties)
    made = {way: reached(calls) for way, calls in found.items()}
    assert made == {"directly": {}, "by io_uring": {}}


def test_system_calls_succeed_without_confinement_of_the_unit(deployed: DeployedHost) -> None:
    """This shows that the unit's settings refuse the calls."""
    found = outcomes(deployed, [f"User=polydev-vm-{SLOT}", "PrivateTmp=yes"])
    for way in found.values():
        assert {name: way[name] for name in UNPRIVILEGED_MAY} == dict.fromkeys(
            UNPRIVILEGED_MAY, "done"
        )


def test_confined_controller_reads_only_files_of_the_vm_user(deployed: DeployedHost) -> None:
    """With its unit's PrivateUsers= it sees all users but root and itself as one."""
    of_vm = f"runuser -u polydev-vm-{SLOT} -- sh -c "
    script = [
        f"install -d {FOLDER}",
        f"chown polydev-controller:polydev-vm-{SLOT} {FOLDER}",
        f"chmod 770 {FOLDER}",
        of_vm + shlex.quote(f"umask 0; echo said by the guest >{FOLDER}/serial.log"),
        of_vm + shlex.quote(f"ln -s /proc/self/environ {FOLDER}/link"),
        *(f"echo secret >{FOLDER}/{name}" for name in ("root", "own")),
        f"chown polydev-controller:polydev-controller {FOLDER}/own",
    ]
    properties = confining_properties(deployed.inside(f"systemctl cat {CONTROLLER}"), SLOT)
    names = [f"{FOLDER}/{name}" for name in ("serial.log", "link", "root", "own")]
    try:
        deployed.inside("; ".join(["set -e", *script]))
        said = output_with(deployed, properties, PYTHON, "-c", READ, *names).splitlines()
    finally:
        deployed.inside("rm -rf /run/walls")
    assert said == [
        "said by the guest",
        "link is a symbolic link; only a regular file is read",
        "root is a file that is not the VM's",
        "own is a file that is not the VM's",
    ]

"""The dead-man timer: the host reverts changes of SSH, bridge and firewall unless confirmed.

The timer is started on the host before the first of these changes. After the last one, the
operator's machine confirms them over a new connection, which stops the timer. If it cannot connect,
the timer runs out and the host restores its backup.
"""

from __future__ import annotations

import json
import shlex
import time

from pyinfra.api.command import StringCommand
from pyinfra.context import host

from polydev.errors import CommandError, DeployError
from polydev.host_layout import BACKUPS
from polydev.host_setup.facts import Firewall, JsonFile, UnitFact
from polydev.host_setup.host_files_and_units import ACCESS_FILES, ACCESS_STAMP, FIREWALL_FILE, TOOL
from polydev.host_setup.host_report import NetworkDifferences
from polydev.host_setup.inventory_values import HostData
from polydev.host_setup.network import TABLE, network_values
from polydev.host_setup.pyinfra_operations import run_locally, show_diff
from polydev.host_setup.pyinfra_types import Commands, concern, operation
from polydev.host_setup.render import config_hash, render
from polydev.host_setup.system_services import sshd_values
from polydev.hosttool.network_facts import BRIDGE_PART
from polydev.processes import run
from polydev.ssh import SshTarget

TIMER = "polydev-deadman.timer"
# Until a busy host has reverted the change, once its timer has run out.
REVERT_SECONDS = 60


def access_hash(site: HostData) -> str:
    values = {**network_values(site), **sshd_values(), "config": "", "stamp": ""}
    return config_hash(*(render(path, values) for path in ACCESS_FILES))


@operation
def arm(
    reach: str,
    firewall: str,
    bridge: list[str],
    sshd: list[str],
    scope: str,
    seconds: int,
    deployment_id: str,
) -> Commands:
    """Start the timer if this deployment changes SSH, bridge or firewall.

    pyinfra has no such operation.
    """
    confirmed = host.get_fact(JsonFile, path=ACCESS_STAMP).get("confirmed")
    touched = ["the firewall"] if _is_touched(firewall) else []
    touched += ["the bridge"] if bridge else []
    touched += ["the SSH daemon"] if sshd else []
    if confirmed == reach and not touched:
        host.noop("SSH, bridge and firewall do not change")
        return
    if confirmed != reach:
        show_diff(f"- access to the host: {confirmed}\n+ access to the host: {reach}")
    else:
        show_diff(
            "\n".join(f"- access to the host: {each} was changed by hand" for each in touched)
        )
    backup = f"{BACKUPS}/{deployment_id}/backup.json"
    document = shlex.quote(scope)
    yield StringCommand(
        f"test -e {backup} || printf %s {document} | {TOOL} backup create --id {deployment_id}"
    )
    yield StringCommand(f"{TOOL} deadman arm --seconds {seconds} --backup {deployment_id}")


def _is_touched(firewall: str) -> bool:
    return bool(host.get_fact(Firewall, family="inet", table=TABLE, text=firewall))


@operation
def confirm(reach: str, target: SshTarget, seconds: int) -> Commands:
    """Stop the timer over a new connection, if it was started."""
    if not host.get_fact(UnitFact, unit=TIMER).active:
        host.noop("the timer was not started")
        return
    yield run_locally(confirm_over_new_connection, target, seconds)
    text = shlex.quote(json.dumps({"confirmed": reach}))
    yield StringCommand(f"printf %s {text} >{ACCESS_STAMP}")


def confirm_over_new_connection(target: SshTarget, seconds: int) -> None:
    """Confirm over a new connection. Raises DeployError when the host cannot be reached.

    After `seconds` the host reverts the change, and says so once that lets us in again.
    """
    deadline = time.monotonic() + seconds + REVERT_SECONDS
    argv = target.argv(TOOL, "deadman", "confirm", timeout_seconds=5)
    while (said := _answer(argv)) is not None:
        if time.monotonic() > deadline or "deadman-fired" in said:
            raise DeployError(
                f"cannot reach {target.name} over a new connection after a change of network, "
                f"firewall or SSH, so the host reverts the change: {said}",
                "correct what shuts you out, then run ./inv deploy again",
            )
        time.sleep(1)


def _answer(argv: list[str]) -> str | None:
    """Return the error, or None."""
    try:
        run(argv, timeout_seconds=15)
    except CommandError as error:
        return error.message
    return None


@concern("Dead-man timer")
def arm_deadman(
    site: HostData, live: NetworkDifferences, sshd: list[str], scope: str, deployment_id: str
) -> None:
    firewall = render(FIREWALL_FILE, network_values(site))
    arm(
        name="armed",
        reach=access_hash(site),
        firewall=firewall,
        bridge=live.get(BRIDGE_PART, []),
        sshd=sshd,
        scope=scope,
        seconds=site.deadman_seconds,
        deployment_id=deployment_id,
    )


@concern("Dead-man timer")
def confirm_deadman(site: HostData, target: SshTarget) -> None:
    confirm(name="confirmed", reach=access_hash(site), target=target, seconds=site.deadman_seconds)

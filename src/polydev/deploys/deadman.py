"""Changes that could shut the operator out: the host takes them back unless confirmed.

Before the first of them the host gets a timer that restores what was; after the last the
operator's machine comes back over a new connection and stops the timer.
"""

from __future__ import annotations

import json
import shlex
import time

from pyinfra.api.command import StringCommand
from pyinfra.context import host

from polydev.deploys.facts import Firewall, JsonFile, UnitFact
from polydev.deploys.host_contents import ACCESS_FILES, ACCESS_STAMP, FIREWALL_FILE, TOOL
from polydev.deploys.host_data import HostData
from polydev.deploys.host_report import NetworkDifferences
from polydev.deploys.network import TABLE, network_values
from polydev.deploys.operations import run_locally, show_diff
from polydev.deploys.pyinfra_types import Commands, concern, operation
from polydev.deploys.render import config_hash, render
from polydev.deploys.system_services import sshd_values
from polydev.errors import CommandError, DeployError
from polydev.host_layout import BACKUPS
from polydev.hosttool.network_facts import BRIDGE_PART
from polydev.run import run
from polydev.ssh import SshTarget

TIMER = "polydev-deadman.timer"


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
    """A timer on the host, if what follows will change how it is reached."""
    confirmed = host.get_fact(JsonFile, path=ACCESS_STAMP).get("confirmed")
    touched = ["the firewall"] if _is_touched(firewall) else []
    touched += ["the bridge"] if bridge else []
    touched += ["the SSH daemon"] if sshd else []
    if confirmed == reach and not touched:
        host.noop("the way to the host does not change")
        return
    if confirmed != reach:
        show_diff(f"- way to the host {confirmed}\n+ way to the host {reach}")
    else:
        show_diff("\n".join(f"- way to the host: {each} was changed by hand" for each in touched))
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
    """Stop the timer over a connection that is made anew, if one was started."""
    if not host.get_fact(UnitFact, unit=TIMER).active:
        host.noop("nothing to confirm")
        return
    yield run_locally(confirm_over_new_connection, target, seconds)
    text = shlex.quote(json.dumps({"confirmed": reach}))
    yield StringCommand(f"printf %s {text} >{ACCESS_STAMP}")


def confirm_over_new_connection(target: SshTarget, seconds: int) -> None:
    """Confirm over a new connection. Raises DeployError when the host cannot be reached."""
    deadline = time.monotonic() + seconds
    argv = target.argv(TOOL, "deadman", "confirm", timeout_seconds=5)
    while (said := _answer(argv)) is not None:
        if time.monotonic() > deadline or "deadman-fired" in said:
            raise DeployError(
                f"{target.name} could not be reached over a new connection after a change of "
                f"network, firewall or SSH, so it takes the change back: {said}",
                "mend what shuts the operator out, then deploy again",
            )
        time.sleep(1)


def _answer(argv: list[str]) -> str | None:
    """What went wrong, or None."""
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

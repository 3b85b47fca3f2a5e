"""The slice of a deployment: all its commands on the host, permitted and ended as one.

A command goes on when the operator's side ends, since it has no terminal. So each command runs in a
scope of `polydev-deploy.slice`, and only while a file on the host permits its deployment. A restore
removes that permission and stops the slice before it changes anything. A command checks for the
permission inside the slice: either it is ended with the slice, or it finds no permission.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from polydev.durable_files import make_folder, unfinished
from polydev.hosttool.errors import HostError
from polydev.hosttool.paths import Paths, require_id
from polydev.hosttool.systemd import Systemd
from polydev.hosttool.verb import ID, Call, HostVerb

SLICE = "polydev-deploy.slice"
# How long a command may take to end before it is killed.
GRACE_SECONDS = 10
STOP_SECONDS = GRACE_SECONDS + 40.0
CONFIGURE_SECONDS = 180.0
IF_PERMITTED = """\
[ "$(cat {file} 2>/dev/null)" = {id} ] || \
{{ echo deployment {id} was ended, nothing more of it runs >&2; exit 1; }}; exec "$@\""""


def in_slice(deployment_id: str, paths: Paths | None = None) -> str:
    """Return the prefix of a deployment's command, for a shell of root."""
    file = shlex.quote(str((paths or Paths()).permission))
    check = IF_PERMITTED.format(file=file, id=require_id(deployment_id))
    words = ["systemd-run", "--quiet", "--scope", "--collect", f"--slice={SLICE}"]
    words += [f"--property=TimeoutStopSec={GRACE_SECONDS}"]
    words += [f"--description=Operation of deployment {deployment_id}"]
    return shlex.join([*words, "--", "sh", "-c", check, "sh"])


def permit(paths: Paths, systemd: Systemd, deployment_id: str) -> dict[str, object]:
    """Permit the commands of one deployment, and end those of any other."""
    stopped = stop(paths, systemd)
    make_folder(paths.permission.parent)
    _write(paths.permission, require_id(deployment_id))
    return {"permitted": deployment_id, "stopped": stopped}


def stop(paths: Paths, systemd: Systemd) -> bool:
    """End all commands and wait until none is left; return False if there were none.

    Raises HostError `operations-run` if one cannot be ended.
    """
    if not paths.permission.exists():
        return False
    # The empty file stays until all have ended, so that the next call finishes a killed one.
    _write(paths.permission, "")
    was_running = systemd.states([SLICE])[SLICE].is_running
    if was_running:
        _stop_slice(systemd)
    paths.permission.unlink()
    return was_running


def _stop_slice(systemd: Systemd) -> None:
    try:
        systemd.act("stop", SLICE, timeout_seconds=STOP_SECONDS)
    except HostError as error:
        raise HostError(
            "operations-run",
            f"commands of a deployment cannot be ended: {error.message}",
            f"`systemd-cgls --unit {SLICE}` on the host shows them; end them, then run it again",
        ) from error


def _write(permission: Path, deployment_id: str) -> None:
    # Not synced: a restart of the host ends all commands anyway.
    fresh = unfinished(permission)
    fresh.write_text(deployment_id)
    fresh.replace(permission)


def configure_packages(paths: Paths) -> str | None:
    """Let dpkg finish what a kill interrupted; return the outcome, or None if nothing was."""
    import subprocess

    # dpkg's journal, until it is merged into its list of packages.
    if not any((paths.dpkg / "updates").glob("[0-9]*")):
        return None
    argv = ["dpkg", f"--admindir={paths.dpkg}", "--force-confdef", "--force-confold"]
    argv += ["--configure", "-a"]
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CONFIGURE_SECONDS,
            check=False,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"failed: {error}"
    if done.returncode != 0:
        return f"failed: {done.stderr.strip()[-500:]}"
    return "configured"


# Verbs


def operations_permit(call: Call) -> object:
    return permit(call.paths, call.systemd, require_id(call.arguments.id))


def operations_stop(call: Call) -> object:
    return {"stopped": stop(call.paths, call.systemd)}


VERBS = (
    HostVerb(
        "operations permit",
        "Allow the commands of one deployment, and end those of any other",
        operations_permit,
        (ID,),
    ),
    HostVerb("operations stop", "End the commands of every deployment", operations_stop),
)

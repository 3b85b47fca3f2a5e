"""The operations of a deployment on the host: all in one slice, so that they can be ended as one.

Whatever ends the operator's side, a command that was begun goes on: it has no terminal to lose. So
each runs in a scope of `polydev-deploy.slice`, and only while the host says that its deployment may
change it. A restore takes that permission back and ends the slice before it changes anything. A
command looks for the permission when it is in the slice already: either it is ended with the slice,
or it finds no permission.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from polydev.durable import make_folder, unfinished
from polydev.hosttool.errors import HostError
from polydev.hosttool.paths import Paths, require_id
from polydev.hosttool.systemd import Systemd

SLICE = "polydev-deploy.slice"
# What an operation has to end by itself, before it is killed.
GRACE_SECONDS = 10
STOP_SECONDS = GRACE_SECONDS + 20.0
CONFIGURE_SECONDS = 180.0
IF_PERMITTED = """\
[ "$(cat {file} 2>/dev/null)" = {id} ] || \
{{ echo deployment {id} was ended, nothing more of it runs >&2; exit 1; }}; exec "$@\""""


def in_slice(deployment_id: str, paths: Paths | None = None) -> str:
    """Return the words that go before a command of a deployment, for a shell of root's."""
    file = shlex.quote(str((paths or Paths()).permission))
    check = IF_PERMITTED.format(file=file, id=require_id(deployment_id))
    words = ["systemd-run", "--quiet", "--scope", "--collect", f"--slice={SLICE}"]
    words += [f"--property=TimeoutStopSec={GRACE_SECONDS}"]
    words += [f"--description=Operation of deployment {deployment_id}"]
    return shlex.join([*words, "--", "sh", "-c", check, "sh"])


def permit(paths: Paths, systemd: Systemd, deployment_id: str) -> dict[str, object]:
    """Let a deployment change the host, and no other one any more."""
    stopped = stop(paths, systemd)
    make_folder(paths.permission.parent)
    _write(paths.permission, require_id(deployment_id))
    return {"permitted": deployment_id, "stopped": stopped}


def stop(paths: Paths, systemd: Systemd) -> bool:
    """End all operations and wait until none is left; False if there were none.

    Raises HostError `operations-run` when one cannot be ended.
    """
    if not paths.permission.exists():
        return False
    # It stays, for nobody, until all have ended: a stop that is killed is finished by the next one.
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
    # Not through to the disk: a restart of the host ends all operations anyway.
    fresh = unfinished(permission)
    fresh.write_text(deployment_id)
    fresh.replace(permission)


def configure_packages(paths: Paths) -> str | None:
    """Finish what dpkg was doing when it was killed; what that said. None where it was not."""
    import subprocess

    # Where dpkg keeps what it has not yet written to its list of packages.
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

"""Send files to a host by rsync, and say so if its disk is full."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polydev.errors import CommandError, DeployError
from polydev.hosttool.deployment_slice import in_slice
from polydev.processes import Completed, run
from polydev.ssh import SshTarget


def remote_options(target: SshTarget, deployment_id: str | None) -> list[str]:
    """Return rsync's options for a host: how to connect, and what to run there as root.

    rsync on the host runs in the deployment's slice, so that it ends with the other operations.
    """
    words = [in_slice(deployment_id)] if deployment_id else []
    remote = " ".join(["sudo -n", *words, "rsync"])
    return [f"--rsync-path={remote}", f"--rsh={target.rsync_shell()}"]


def send(argv: Sequence[str | Path], target: SshTarget, folder: str, size_bytes: int) -> Completed:
    """Run rsync to a folder of the host, and return its output.

    Raises DeployError if the folder has no space for `size_bytes`: rsync may end before the
    receiver's message about that arrives. Raises CommandError for other failures.
    """
    try:
        return run(argv)
    except CommandError as error:
        free_bytes = free_bytes_in(target, folder)
        if free_bytes is None or free_bytes >= size_bytes:
            raise
        raise DeployError(
            f"{target.name}: no space left in {folder}: {_in_mb(free_bytes)} are free, "
            f"{_in_mb(size_bytes)} were to be sent",
            f"free space on that disk (df {folder}), then run ./inv deploy again",
        ) from error


def free_bytes_in(target: SshTarget, folder: str) -> int | None:
    """Return the free space in a folder of the host; None if the host does not answer."""
    argv = target.argv("df", "--block-size=1", "--output=avail", folder)
    done = run(argv, check=False)
    figure = done.stdout.rpartition("Avail")[2].strip()
    return int(figure) if done.status == 0 and figure.isdecimal() else None


def _in_mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"

"""Run a short command with a deadline, without `subprocess`, whose import takes long."""

from __future__ import annotations

import os
from select import POLLIN, poll
from time import monotonic

from polydev.agent.errors import CheckFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

CHUNK_BYTES = 65536
SIGKILL, SIGPIPE = 9, 13  # the signal module wraps them in enums, which is not free


def output_of(
    argv: list[str], timeout_seconds: float, environment: Mapping[str, str] | None = None
) -> str:
    """Return the output and errors of a command. Raises CheckFailed unless its status is 0.

    Without `environment`, it has the agent's PATH and the locale C.
    """
    environment = environment or {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    read_end, write_end = os.pipe()
    try:
        try:
            pid = _spawn(argv, write_end, environment)
        finally:
            os.close(write_end)
        return _output(pid, os.path.basename(argv[0]), read_end, timeout_seconds)
    finally:
        os.close(read_end)


def _spawn(argv: list[str], output: int, environment: Mapping[str, str]) -> int:
    try:
        return os.posix_spawnp(
            argv[0],
            argv,
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, output, 1),
                (os.POSIX_SPAWN_DUP2, output, 2),
            ],
            setpgroup=0,  # so that its children can be killed with it
            setsigdef=[SIGPIPE],  # Python ignores it, which children would inherit
        )
    except OSError as error:
        raise CheckFailed(
            f"{os.path.basename(argv[0])} could not be started: {error.strerror}"
        ) from error


def _output(pid: int, name: str, read_end: int, timeout_seconds: float) -> str:
    output = _read_to_end(read_end, monotonic() + timeout_seconds)
    if output is None:
        os.killpg(pid, SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if output is None:
        raise CheckFailed(f"{name} did not end within {timeout_seconds:g} s")
    text = output.decode("utf-8", "replace")
    if status != 0:
        raise CheckFailed(f"{name} exited with status {status}: {text.strip()[:200]}")
    return text


def _read_to_end(descriptor: int, ends: float) -> bytes | None:
    """Read to the end; return None if it does not come in time."""
    poller = poll()
    poller.register(descriptor, POLLIN)
    output = b""
    while (left := ends - monotonic()) > 0 and poller.poll(left * 1000):
        chunk = os.read(descriptor, CHUNK_BYTES)
        if not chunk:
            return output
        output += chunk
    return None

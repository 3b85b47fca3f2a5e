"""Start the restore of a backup on a host, and wait for its result.

The host runs the restore by itself. If the connection is lost, the restore continues, and its state
is asked for again once the host can be reached.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from polydev.deployment.connection import HostConnection, HostRefused, TookTooLong, Unreachable
from polydev.errors import DeployError
from polydev.hosttool.paths import Paths
from polydev.hosttool.restore_job import FAILED, RUNNING, RestoreJob

RETRY_SECONDS = 1.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 2.0
# An interrupted restore, as by a restart of the host, continues when it is started again.
MOST_STARTS = 3
T = TypeVar("T")
Say = Callable[[str], None]


class RestoreGoesOn(Unreachable):
    """The host cannot be reached, while it runs a restore."""


def restore_backup(
    connection: HostConnection,
    job: RestoreJob,
    *,
    require_lock: Callable[[], None],
    say: Say,
    patience_seconds: float,
) -> dict[str, Any]:
    """Let the host restore a backup; return what that changed.

    `require_lock` is called before each request, as somebody may have broken our lock. Raises
    HostRefused with the host's reason, Unreachable or RestoreGoesOn if the host could not be
    reached for `patience_seconds`.
    """
    starts, pause = 0, FIRST_PAUSE_SECONDS

    def ask() -> dict[str, Any]:
        nonlocal starts
        require_lock()
        state = connection.restore_state(job)
        if state is None:
            if starts == MOST_STARTS:
                raise DeployError(
                    f"{connection.target.name}: the restore of {job.backup} was interrupted "
                    f"{MOST_STARTS} times",
                    f"log in to the host and see journalctl -u {job.unit}",
                )
            if starts:
                # The part that is done may have replaced the host tool.
                connection.install_tool()
            starts += 1
            state = connection.tool("restore-job", "--id", job.backup, "--by", job.by)
        return state

    while True:
        try:
            state = until_reached(ask, say, patience_seconds)
        except (Unreachable, TookTooLong) as error:
            raise (_goes_on(job, error) if starts else error) from error
        if state["state"] != RUNNING:
            return _answer(connection.target.name, state)
        say(str(state["step"]))
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def until_reached(ask: Callable[[], T], say: Say, patience_seconds: float) -> T:
    """Repeat a request until the host answers; raise the last error after so long."""
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline:
        with suppress(Unreachable, TookTooLong):
            return ask()
        say("no connection: trying again")
        time.sleep(RETRY_SECONDS)
    return ask()


def _goes_on(job: RestoreJob, error: DeployError) -> RestoreGoesOn:
    return RestoreGoesOn(
        f"{error.message}\nthe host continues the restore of {job.backup} by itself",
        f"./inv deployments once it answers; on the host: cat {job.file(Paths())}",
    )


def _answer(host: str, state: dict[str, Any]) -> dict[str, Any]:
    if state["state"] == FAILED:
        error = state["error"]
        raise HostRefused(f"{host}: {error['message']}", error.get("hint"))
    answer: dict[str, Any] = state["answer"]
    return answer

"""The dead-man timer: it restores a backup unless the operator confirms a change in time.

The state in deadman.json decides: a timer that fires after the confirmation does nothing, and a
confirmation after the timer has fired is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any

from polydev.durable_files import read_json, write_json
from polydev.hosttool.backup_manifest import read_backup, require_intact
from polydev.hosttool.errors import HostError
from polydev.hosttool.paths import Paths
from polydev.hosttool.systemd import ANSWER_SECONDS, Systemd
from polydev.hosttool.verb_lock import lock_host

NAME = "polydev-deadman"
TIMER, SERVICE = f"{NAME}.timer", f"{NAME}.service"


def arm(paths: Paths, systemd: Systemd, backup_id: str, seconds: int) -> dict[str, Any]:
    """Start or restart the timer. Raises HostError `backup-damaged`."""
    with lock_host(paths, "deadman arm"):
        # Under the lock, so that the backup is not pruned before the timer is armed.
        require_intact(read_backup(paths, backup_id), with_host=False)
        now = datetime.now(timezone.utc)
        state = {
            "armed": True,
            "fired": False,
            "backup": backup_id,
            "at": now.isoformat(),
            "firesAt": (now + timedelta(seconds=seconds)).isoformat(),
        }
        write_json(paths.deadman, state)
        _stop(systemd)
        words = ["restore", "--id", backup_id, "--reach", "--because", "deadman"]
        systemd.run_later(NAME, seconds, [str(paths.tool), *words])
    return state


def confirm(paths: Paths, systemd: Systemd) -> dict[str, Any]:
    """Stop the timer for good. Raises HostError `deadman-fired`, `deadman-not-armed`."""
    with lock_host(paths, "deadman confirm"):
        state = _state(paths)
        if state.get("fired"):
            raise HostError(
                "deadman-fired",
                f"confirmed too late: the dead-man timer restored backup {state['backup']} "
                f"at {state['at']}",
                "correct what shut you out (firewall, SSH or bridge), then deploy again",
            )
        if not state:
            raise HostError(
                "deadman-not-armed",
                "the dead-man timer is not armed",
                "`polydev-host deadman arm` arms it",
            )
        if state["armed"]:
            state |= {"armed": False, "confirmedAt": datetime.now(timezone.utc).isoformat()}
            write_json(paths.deadman, state)
        _stop(systemd)
    return state


def status(paths: Paths, systemd: Systemd) -> dict[str, Any]:
    """Return the state, and whether systemd has the timer, which a restart of the host removes."""
    waits = systemd.states([TIMER])[TIMER].is_running
    return {"armed": False, "fired": False} | _state(paths) | {"timer": waits}


def fire(paths: Paths, backup_id: str) -> bool:
    """Record that the timer has fired; return False if there is nothing to restore."""
    state = _state(paths)
    if state.get("backup") != backup_id or not (state["armed"] or _is_unfinished(state)):
        return False
    at = datetime.now(timezone.utc).isoformat()
    write_json(paths.deadman, state | {"armed": False, "fired": True, "at": at})
    return True


def _is_unfinished(state: dict[str, Any]) -> bool:
    return bool(state["fired"]) and "outcome" not in state


def outcome_of(paths: Paths, restore: Callable[[], dict[str, object]]) -> dict[str, object]:
    """Run the restore and record its result."""
    try:
        done = restore()
    except HostError as error:
        write_json(paths.deadman, _state(paths) | {"outcome": error.as_dict()})
        raise
    write_json(paths.deadman, _state(paths) | {"outcome": done})
    return done


def _state(paths: Paths) -> dict[str, Any]:
    return read_json(paths.deadman) or {}


def _stop(systemd: Systemd) -> None:
    # systemd refuses this for units that are not loaded, which is fine.
    for verb, unit in (("stop", TIMER), ("reset-failed", SERVICE)):
        with suppress(HostError):
            systemd.act(verb, unit, timeout_seconds=ANSWER_SECONDS)

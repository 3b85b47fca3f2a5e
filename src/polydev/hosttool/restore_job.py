"""A restore that systemd runs as a unit, so that a lost connection does not end it.

Its state is a file, which the operator's side can read over a later connection, and also after the
restore has replaced this host tool with an older one.

restores/<by>-of-<backup>.json    state (running, done or failed), step, and answer or error
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polydev.durable_files import make_folder, read_json, write_json
from polydev.hosttool.disk_reserve import use_reserve
from polydev.hosttool.errors import HostError
from polydev.hosttool.paths import Paths, require_id
from polydev.hosttool.systemd import Systemd

RUNNING, DONE, FAILED = "running", "done", "failed"
Say = Callable[[str], None]


@dataclass(frozen=True)
class RestoreJob:
    """The restore of a backup for one deployment or rollback, which starts it once."""

    by: str
    backup: str

    @property
    def name(self) -> str:
        return f"{self.by}-of-{self.backup}"

    @property
    def unit(self) -> str:
        return f"polydev-restore-{self.name}.service"

    def file(self, paths: Paths) -> Path:
        return paths.restores / f"{self.name}.json"


def start(
    paths: Paths, systemd: Systemd, job: RestoreJob, options: Sequence[str] = ()
) -> dict[str, Any]:
    """Start the restore unless it runs or has ended; return its state.

    A restore that broke off, as by a restart of the host, is started again.
    """
    require_id(job.by)
    require_id(job.backup)
    # First the unit: its restore may end at this moment, and notes that before.
    runs = systemd.states([job.unit])[job.unit].is_running
    state = read_state(paths, job)
    if state and (state["state"] != RUNNING or runs):
        return state
    make_folder(paths.restores)
    _remove_states_of_pruned(paths)
    state = _write(paths, job, state=RUNNING, step="starting")
    words = ["restore", "--id", job.backup, "--by", job.by, *options]
    systemd.run_now(job.unit, [str(paths.tool), *words])
    return state


def follow(
    paths: Paths, job: RestoreJob, restore: Callable[[Say], dict[str, object]]
) -> dict[str, object]:
    """Run the restore in this process and write each step and the result to its file."""
    make_folder(paths.restores)
    try:
        done = restore(lambda step: _write_step(paths, job, step))
    except Exception as error:
        failure = error if isinstance(error, HostError) else HostError("internal", repr(error))
        _write(paths, job, state=FAILED, error=failure.as_dict())
        raise
    _write(paths, job, state=DONE, answer=done)
    return done


def read_state(paths: Paths, job: RestoreJob) -> dict[str, Any] | None:
    """Read the state; None if the restore was never started."""
    try:
        return read_json(job.file(paths))
    except ValueError:
        return None


def _write_step(paths: Paths, job: RestoreJob, step: str) -> None:
    _write(paths, job, state=RUNNING, step=step)


def _write(paths: Paths, job: RestoreJob, **state: object) -> dict[str, Any]:
    document = {"by": job.by, "backup": job.backup, **state}
    try:
        write_json(job.file(paths), document)
    except OSError:  # a full disk
        use_reserve(paths)
        write_json(job.file(paths), document)
    return document


def _remove_states_of_pruned(paths: Paths) -> None:
    """Remove the states of restores whose backups were pruned."""
    for file in paths.restores.glob("*.json"):
        if not (paths.backups / file.stem.partition("-of-")[2]).exists():
            file.unlink(missing_ok=True)

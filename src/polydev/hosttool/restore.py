"""Restore a backup: it is checked first, then restored in steps, each of which can be repeated.

    stop units that did not exist -> files -> database -> daemon-reload
    -> golden link -> units -> the controller's release -> remove a database that did not exist

Only differences are changed. The changes are recorded before they are made (`PendingChanges`), so
that after a kill the next restore still knows which units need a restart.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from polydev.hosttool import backup, deadman
from polydev.hosttool.backup_manifest import Backup, read_backup, require_intact
from polydev.hosttool.deployment_slice import configure_packages, stop
from polydev.hosttool.disk_reserve import keep_reserve, use_reserve
from polydev.hosttool.errors import HostError
from polydev.hosttool.file_metadata import entries_below, is_below
from polydev.hosttool.golden_link import point_golden
from polydev.hosttool.paths import Paths
from polydev.hosttool.restore_controller import ControllerRestore
from polydev.hosttool.restore_files import (
    PendingChanges,
    apply_change,
    file_changes,
    part_of,
    read_pending,
    remove_unfinished,
    with_later,
)
from polydev.hosttool.restore_units import UnitRestore
from polydev.hosttool.systemd import Systemd, UnitTimeouts
from polydev.hosttool.units import MAIN, SOCKET, has_files_among
from polydev.hosttool.verb_lock import lock_host
from polydev.image_layout import GOLDEN_LINK

# Long enough for a backup of a large database to finish.
WAIT_SECONDS = 1800.0


@dataclass(frozen=True)
class RestoreOptions:
    """`reach` restores only what access to the host depends on; `say` is called for each step."""

    reach: bool = False
    with_database: bool = True
    limits: UnitTimeouts = field(default_factory=UnitTimeouts)
    say: Callable[[str], None] = lambda step: None


def restore(
    paths: Paths, systemd: Systemd, backup_id: str, options: RestoreOptions
) -> dict[str, object]:
    """Restore a backup and return what was changed.

    Raises HostError: `backup-missing`, `backup-damaged` (nothing is changed then),
    `operations-run` (the same), `restore-incomplete` and `handover-failed` (everything else is
    done; run it again).
    """
    read_backup(paths, backup_id)
    options.say("ending the commands of the deployment")
    # Before the lock: a command of the deployment may hold it.
    stop(paths, systemd)
    options.say("waiting for other work on the host")
    with lock_host(paths, f"restore {backup_id}", WAIT_SECONDS):
        packages = configure_packages(paths)
        done = _restore(paths, systemd, backup_id, options)
    return done if packages is None else {**done, "packages": packages}


def restore_for_deadman(
    paths: Paths, systemd: Systemd, backup_id: str, options: RestoreOptions
) -> dict[str, object]:
    """Run the restore of the dead-man timer; do nothing if the operator has confirmed."""
    verb = f"restore {backup_id} for the dead-man timer"
    with lock_host(paths, verb):
        if not deadman.fire(paths, backup_id):
            return {"id": backup_id, "skipped": "the dead-man timer is not armed with this backup"}
    with suppress(HostError):  # access to the host counts more than a command that does not end
        stop(paths, systemd)
    with lock_host(paths, verb):
        return deadman.outcome_of(paths, lambda: _restore(paths, systemd, backup_id, options))


def _restore(
    paths: Paths, systemd: Systemd, backup_id: str, options: RestoreOptions
) -> dict[str, object]:
    options.say("checking the backup")
    own = read_backup(paths, backup_id)
    saved = with_later(own, _later(paths, own))
    if options.reach:
        saved = part_of(saved, own.scope.reach, _units_within_reach(paths, saved))
    require_intact(own, saved, with_host=not options.reach)
    use_reserve(paths)
    done = Restoration(paths, systemd, saved, options).run()
    with suppress(OSError):  # the disk is full: the next backup reserves it
        keep_reserve(paths)
    return done


def _later(paths: Paths, saved: Backup) -> list[Backup]:
    """Return every readable backup made after `saved`, oldest first."""
    whole = [str(each["id"]) for each in backup.list_backups(paths) if not each["problem"]]
    return [read_backup(paths, each) for each in reversed(whole[: whole.index(saved.id)])]


def _units_within_reach(paths: Paths, saved: Backup) -> list[str]:
    reach = saved.scope.reach
    return [
        unit
        for unit in saved.units
        if unit not in (MAIN, SOCKET) and has_files_among(paths, unit, reach)
    ]


class Restoration:
    """One restore under way."""

    def __init__(
        self, paths: Paths, systemd: Systemd, saved: Backup, options: RestoreOptions
    ) -> None:
        self.paths = paths
        self.saved = saved
        self.say = options.say
        self.is_partial = options.reach
        self.pending = read_pending(paths)
        self.changes = file_changes(saved.entries, entries_below(saved.scope.paths))
        self.units = UnitRestore(paths, systemd, saved, self.pending, options.limits)
        self.controller = ControllerRestore(
            paths, systemd, saved, self.pending, options.limits, options.with_database
        )

    def run(self) -> dict[str, object]:
        self._announce()
        self.say("files")
        self.units.stop_newer()
        remove_unfinished(self._places())
        for change in self.changes:
            apply_change(change)
        self.say("database")
        database = self.controller.restore_database()
        dump = self.controller.restore_dump()
        self.say("units")
        if self.pending.reload:
            self.units.reload_systemd()
        golden = self._restore_golden()
        self.units.restore()
        self.say("controller")
        handover = self.controller.restore_release()
        self.units.restore_holder()
        database = self.controller.remove_database() or database
        if problems := [*self.controller.problems, *self.units.problems]:
            raise HostError(
                "restore-incomplete",
                f"backup {self.saved.id} is restored, except: {'; '.join(problems)}",
                "see `journalctl -u UNIT` on the host, then run the restore again",
            )
        self._settle()
        done = [*self.changes, *self.units.done, *filter(None, (database, dump, golden, handover))]
        return {
            "id": self.saved.id,
            "changes": len(done),
            "changed": [change.as_dict() for change in self.changes],
            "units": self.units.done,
            "database": dump or database,
            "golden": golden,
            "handover": handover,
        }

    def _announce(self) -> None:
        self.pending.add(self.changes, self.paths.units)
        self.pending.database |= self.controller.database_differs
        self.pending.write(self.paths)

    def _places(self) -> list[Path]:
        controller, store = self.saved.scope.controller, self.saved.scope.store
        places = [one.entry.path for one in self.saved.entries]
        places += [controller.current, controller.database] if controller else []
        return places + ([store / GOLDEN_LINK] if store else [])

    def _restore_golden(self) -> str | None:
        store = self.saved.scope.store
        if store is None or not point_golden(store, self.saved.golden):
            return None
        return self.saved.golden.image if self.saved.golden else "none"

    def _settle(self) -> None:
        """Remove the pending changes that are done; a partial restore leaves the others."""
        left = PendingChanges()
        if self.is_partial:
            part = self.saved.scope.paths
            left.paths = {path for path in self.pending.paths if not is_below(path, part)}
            left.database = self.pending.database
        left.write(self.paths)

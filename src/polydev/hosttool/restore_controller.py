"""The part of a restore that belongs to the controller: its database and its release."""

from __future__ import annotations

from polydev.durable_files import point_link, remove, target_of
from polydev.hosttool.backup_manifest import Backup, DatabaseCopy
from polydev.hosttool.backup_scope import ControllerScope
from polydev.hosttool.database_dump import restore_dump
from polydev.hosttool.errors import HostError
from polydev.hosttool.file_metadata import PathEntry, entry_of, is_below
from polydev.hosttool.paths import Paths
from polydev.hosttool.release_handover import Handover
from polydev.hosttool.restore_files import PendingChanges
from polydev.hosttool.run_controller_command import ControllerProgram
from polydev.hosttool.sqlite_database import (
    content_sha256,
    remove_database,
    replace_database,
    restore_in_place,
    set_owner,
)
from polydev.hosttool.systemd import Systemd, UnitTimeouts
from polydev.hosttool.units import (
    MAIN,
    NEXT_PATTERN,
    SOCKET,
    has_files_among,
    started_config,
    wanted_config,
)


class ControllerRestore:
    """Restore database and release; do nothing if the backup has no controller in its scope."""

    def __init__(
        self,
        paths: Paths,
        systemd: Systemd,
        saved: Backup,
        pending: PendingChanges,
        limits: UnitTimeouts,
        with_database: bool,
    ) -> None:
        self.paths = paths
        self.systemd = systemd
        self.saved = saved
        self.pending = pending
        self.limits = limits
        self.database = saved.database if with_database else None
        self.dump = saved.dump if with_database else None
        self.problems: list[str] = []
        # Read once: a large database takes its time.
        self._live_content = _live_content(self.database) if self.database else None
        self.database_differs = self.database is not None and self._differs(self.database)

    def restore_database(self) -> str | None:
        """Restore SQLite; return `replaced`, `adjusted`, or None if nothing had to be done."""
        if self.database is None:
            return None
        entry, stored = self.database.copy.entry, self.database.copy.stored
        if stored is None:
            return None
        live = entry.path
        if not self.database_differs:
            return _adjust(entry)
        if self._live_content is not None:
            restore_in_place(live, stored, entry)
        else:
            self._stop_all()
            replace_database(live, stored, entry)
        return "replaced"

    def restore_dump(self) -> str | None:
        """Restore PostgreSQL's dump, by the release and with the secrets that belong to it.

        A database that cannot be reached is a problem, but must not stop the rest of the restore.
        """
        controller, release, dump = self.saved.scope.controller, self.saved.release, self.dump
        if dump is None or controller is None or release is None:
            return None
        try:
            restore_dump(ControllerProgram(self.paths, controller.release(release)), dump)
        except HostError as error:
            self.problems.append(f"{dump.database}: {error.message}")
            return None
        return dump.database

    def remove_database(self) -> str | None:
        """Remove a database that did not exist; after the handover, when no process needs it."""
        if self.database is None or self.database.copy.stored is not None:
            return None
        live = self.database.copy.entry.path
        if not live.exists():
            return None
        remove_database(live)
        return "removed"

    def restore_release(self) -> str | None:
        """Restore the release; return what the controller runs now, if that changed."""
        controller, release = self.saved.scope.controller, self.saved.release
        if controller is None:
            return None
        was = target_of(controller.current)
        if release is None:
            remove(controller.current)
            return "none" if was else None
        if self.saved.units[MAIN].is_running:
            if not self._is_handover_due(controller, release):
                return None
            Handover(self.systemd, controller.root, self.limits).to(release)
            return release
        target = f"releases/{release}"
        if was == target:
            return None
        point_link(controller.current, target)
        return release

    def _is_handover_due(self, controller: ControllerScope, release: str) -> bool:
        changed = self.pending.paths
        wanted = wanted_config(self.paths, MAIN)
        return (
            target_of(controller.current) != f"releases/{release}"
            or self.pending.database
            or any(is_below(path, [self.paths.controller_config]) for path in changed)
            or has_files_among(self.paths, MAIN, changed)
            or (wanted is not None and wanted != started_config(self.paths, MAIN))
            or not self.systemd.states([MAIN])[MAIN].is_running
        )

    def _differs(self, wanted: DatabaseCopy) -> bool:
        if wanted.copy.stored is None:
            return wanted.copy.entry.path.exists()
        return self._live_content != wanted.content

    def _stop_all(self) -> None:
        # The socket too: it would start the service again for the next request. What is to run
        # starts later in this restore.
        for unit in (SOCKET, MAIN, *self.systemd.loaded(NEXT_PATTERN)):
            if self.systemd.states([unit])[unit].is_running:
                self.systemd.act("stop", unit, timeout_seconds=self.limits.drain_seconds)


def _live_content(wanted: DatabaseCopy) -> str | None:
    """Return the hash of the database's content; None if it cannot be read or will be removed."""
    live = wanted.copy.entry.path
    return content_sha256(live) if wanted.copy.stored and live.exists() else None


def _adjust(wanted: PathEntry) -> str | None:
    now = entry_of(wanted.path)
    if (now.mode, now.owner, now.group) == (wanted.mode, wanted.owner, wanted.group):
        return None
    set_owner(wanted.path, wanted)
    return "adjusted"

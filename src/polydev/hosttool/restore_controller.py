"""The part of a restore that belongs to the controller: its database and its release."""

from __future__ import annotations

import os
from pathlib import Path

from polydev.hosttool.database import (
    can_be_replaced_in_use,
    content_sha256,
    remove_database,
    replace_database,
)
from polydev.hosttool.durable import point_link, remove, target_of
from polydev.hosttool.handover import Handover, Limits
from polydev.hosttool.paths import Paths
from polydev.hosttool.pending import Pending
from polydev.hosttool.saved import KeptDatabase, Saved
from polydev.hosttool.scope import Controller
from polydev.hosttool.systemd import Systemd
from polydev.hosttool.tree import entry_of, gid_of, is_below, uid_of
from polydev.hosttool.units import (
    MAIN,
    NEXT_PATTERN,
    has_files_among,
    started_config,
    wanted_config,
)


class ControllerRestore:
    """Does nothing where the backup has no controller in its scope."""

    def __init__(
        self,
        paths: Paths,
        systemd: Systemd,
        saved: Saved,
        pending: Pending,
        limits: Limits,
        with_database: bool,
    ) -> None:
        self.paths = paths
        self.systemd = systemd
        self.saved = saved
        self.pending = pending
        self.limits = limits
        self.database = saved.database if with_database else None
        self.database_differs = self.database is not None and _differs(self.database)

    def restore_database(self) -> str | None:
        """What was done to it: removed, replaced, adjusted or, None, nothing."""
        if self.database is None:
            return None
        entry, stored = self.database.kept.entry, self.database.kept.stored
        live = entry.path
        if not self.database_differs:
            return _adjust(self.database)
        if stored is None:
            self._stop_all()
            remove_database(live)
            return "removed"
        if live.exists() and not (can_be_replaced_in_use(live) and content_sha256(live)):
            self._stop_all()
        replace_database(live, stored, entry)
        return "replaced"

    def restore_release(self) -> str | None:
        """What the controller runs now, if that was changed."""
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

    def _is_handover_due(self, controller: Controller, release: str) -> bool:
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

    def _stop_all(self) -> None:
        for unit in (MAIN, *self.systemd.loaded(NEXT_PATTERN)):
            if self.systemd.states([unit])[unit].is_running:
                self.systemd.act("stop", unit, timeout_seconds=self.limits.drain_seconds)


def _differs(wanted: KeptDatabase) -> bool:
    live = wanted.kept.entry.path
    if wanted.kept.stored is None:
        return live.exists()
    return not live.exists() or content_sha256(live) != wanted.content


def _adjust(wanted: KeptDatabase) -> str | None:
    entry = wanted.kept.entry
    if wanted.kept.stored is None:
        return None
    now = entry_of(entry.path)
    if (now.mode, now.owner, now.group) == (entry.mode, entry.owner, entry.group):
        return None
    os.chown(entry.path, uid_of(entry.owner), gid_of(entry.group))
    Path(entry.path).chmod(entry.mode)
    return "adjusted"

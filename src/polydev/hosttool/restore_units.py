"""The part of a restore that brings units back: enabled, running, with their configuration."""

from __future__ import annotations

from polydev.hosttool.backup_manifest import Backup
from polydev.hosttool.controller_socket import socket_users
from polydev.hosttool.errors import HostError
from polydev.hosttool.file_metadata import is_below
from polydev.hosttool.paths import Paths
from polydev.hosttool.restore_files import PendingChanges
from polydev.hosttool.systemd import Systemd, UnitStatus, UnitTimeouts
from polydev.hosttool.units import (
    MAIN,
    NEXT_PATTERN,
    SLOT,
    SOCKET,
    TEMPLATE_HOLDER,
    TEMPLATE_MAKER,
    VM,
    forget_config,
    instances,
    is_outdated,
    running_vms,
    slots_of,
    wanted_config,
)

SYSCTL_UNIT = "systemd-sysctl.service"


class UnitRestore:
    """Restore the units of a backup; `done` lists what was done, `problems` what failed.

    `in_use` are slots whose VM runs: they stay as they are, whatever the backup says.
    """

    def __init__(
        self,
        paths: Paths,
        systemd: Systemd,
        saved: Backup,
        pending: PendingChanges,
        limits: UnitTimeouts,
    ) -> None:
        self.paths = paths
        self.systemd = systemd
        self.saved = saved
        self.pending = pending
        self.limits = limits
        self.done: list[dict[str, str]] = []
        self.problems: list[str] = []
        self.in_use: set[str] = set()

    def stop_newer(self) -> None:
        """Stop and disable units that did not exist yet, while systemd still has their files."""
        newer = [unit for unit, state in self.saved.units.items() if not state.exists]
        files = [one.entry.path for one in self.saved.entries]
        self._keep_or_stop_vms()
        newer += [each for each in instances(self.systemd, files) if each not in self.saved.units]
        if self.saved.scope.controller and self.saved.release is None:
            newer += self.systemd.loaded(NEXT_PATTERN)
        states = self.systemd.states(newer)
        for unit in reversed([each for each in newer if each not in self.in_use]):
            if states[unit].is_running:
                self._act("stop", unit)
            if states[unit].is_enabled:
                self._act("disable", unit)
            forget_config(self.paths, unit)

    def _keep_or_stop_vms(self) -> None:
        """Keep running VMs; stop them if the backup is of a host without VMs."""
        files = [
            one.entry for one in self.saved.entries if one.entry.path.name.startswith((VM, SLOT))
        ]
        if not files and not any(unit.startswith(SLOT) for unit in self.saved.units):
            return
        vms = running_vms(self.systemd)
        if any(file.kind == "absent" and file.path.name.startswith(VM) for file in files):
            for vm in vms:
                self._act("stop", vm)
        else:
            self.in_use = slots_of(vms)

    def reload_systemd(self) -> None:
        self.systemd.act("daemon-reload", timeout_seconds=self.limits.start_seconds)

    def restore(self) -> None:
        """Enable, stop, start and restart, in this order; the handover starts the service."""
        wanted = self._wanted()
        now = self.systemd.states(list(wanted))
        for unit, state in wanted.items():
            if state.is_enabled != now[unit].is_enabled and now[unit].exists:
                self._enable(unit, state, now[unit])
        for unit in reversed(
            [each for each in wanted if each not in (TEMPLATE_MAKER, *self.in_use)]
        ):
            if now[unit].is_running and not wanted[unit].is_running:
                self._act("stop", unit)
                forget_config(self.paths, unit)
        for unit, state in wanted.items():
            if state.is_running and unit not in (
                MAIN,
                TEMPLATE_HOLDER,
                TEMPLATE_MAKER,
                *self.in_use,
            ):
                self._bring_up(unit, now[unit])
        if any(is_below(path, [self.paths.sysctl]) for path in self.pending.paths):
            self._act("restart", SYSCTL_UNIT)

    def restore_holder(self) -> None:
        """Start or restart the template holder, which runs a program of the release, after it."""
        if TEMPLATE_HOLDER in (wanted := self._wanted()) and wanted[TEMPLATE_HOLDER].is_running:
            self._bring_up(TEMPLATE_HOLDER, self.systemd.states([TEMPLATE_HOLDER])[TEMPLATE_HOLDER])

    def _wanted(self) -> dict[str, UnitStatus]:
        return {unit: state for unit, state in self.saved.units.items() if state.exists}

    def _enable(self, unit: str, wanted: UnitStatus, now: UnitStatus) -> None:
        # Other words than these two ("static", "masked") come from the files, which are back.
        if wanted.is_enabled:
            self._act("enable", unit)
        elif wanted.enabled == "disabled" and now.is_enabled:
            self._act("disable", unit)

    def _bring_up(self, unit: str, now: UnitStatus) -> None:
        is_lost = unit == SOCKET and not self.systemd.listens(SOCKET)
        if is_lost:
            self._stop_users()
        if not now.is_running or is_lost:
            self._act("reset-failed", unit, is_reported=False)
            self._act("start", unit)
        elif is_outdated(self.paths, unit, self.pending.paths):
            if unit == SOCKET:
                self._stop_users()
            # A target passes a restart on to all its parts; a start adds what it lacks.
            verb = "start" if unit.endswith(".target") else "reload-or-restart"
            self._act(verb, unit)
            if wanted_config(self.paths, unit) is None:
                forget_config(self.paths, unit)

    def _stop_users(self) -> None:
        """Stop the socket and what runs with it; the handover starts the service again."""
        for unit in socket_users(self.systemd):
            self._act("stop", unit, is_reported=False)

    def _act(self, verb: str, unit: str, *, is_reported: bool = True) -> None:
        try:
            self.systemd.act(verb, unit, timeout_seconds=self.limits.restart_seconds)
        except HostError as error:
            if is_reported:
                self.problems.append(error.message)
        else:
            if is_reported:
                self.done.append({"unit": unit, "did": verb})

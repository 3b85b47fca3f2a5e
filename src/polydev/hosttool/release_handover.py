"""The handover: one release of the controller takes over from another without dropped requests.

systemd has the listening socket. The new release starts beside the service and accepts requests
once its own health check is good. Then the service restarts with the new release, and the instance
beside it ends. Each process finishes its requests before it ends.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from polydev.durable_files import point_link, remove, target_of
from polydev.hosttool.controller_socket import socket_users
from polydev.hosttool.errors import HostError
from polydev.hosttool.log_error_line import failing_line
from polydev.hosttool.paths import Paths
from polydev.hosttool.release_files import PROGRAM
from polydev.hosttool.systemd import Systemd, UnitTimeouts
from polydev.hosttool.units import MAIN, NEXT, NEXT_PATTERN, SOCKET, next_unit
from polydev.hosttool.verb_lock import lock_host

LOG_LINES = 30


class StartError(HostError):
    """A unit did not start; `log` has what it logged since."""

    def __init__(self, unit: str, message: str, log: str) -> None:
        super().__init__("unit-failed", message)
        self.unit = unit
        self.log = log


def hand_over(
    paths: Paths, systemd: Systemd, release: str, limits: UnitTimeouts
) -> dict[str, object]:
    """Run `Handover.to` while no other verb changes the host."""
    with lock_host(paths, f"handover {release}"):
        return Handover(systemd, paths.controller, limits).to(release)


@dataclass(frozen=True)
class Handover:
    """One change of the release that the service runs."""

    systemd: Systemd
    root: Path
    limits: UnitTimeouts

    @property
    def current(self) -> Path:
        return self.root / "current"

    def to(self, release: str) -> dict[str, object]:
        """Let the service run `release`. Raises HostError `release-missing`, `handover-failed`.

        After a failure the release that ran before runs, and `current` names it.
        """
        if not (self.root / "releases" / release / PROGRAM).exists():
            raise HostError(
                "release-missing",
                f"release {release} is not installed in {self.root}",
                "`./inv deploy` installs it",
            )
        former = target_of(self.current)
        if not self.systemd.listens(SOCKET):
            self._start_socket()
        if self.systemd.states([MAIN])[MAIN].is_running:
            self._beside_the_service(release, former)
        else:
            self._without_service(release, former)
        self._stop_next()
        return {"release": release, "was": Path(former).name if former else None}

    def _start_socket(self) -> None:
        """Let systemd listen, for the first time or after it has lost the socket."""
        for unit in socket_users(self.systemd):
            self.systemd.act("stop", unit, timeout_seconds=self.limits.drain_seconds)
        self.systemd.act("start", SOCKET, timeout_seconds=self.limits.start_seconds)

    def _beside_the_service(self, release: str, former: str | None) -> None:
        unit = next_unit(release)
        try:
            # A restart: a killed handover may have left one that started with older files.
            self._start(unit)
        except StartError as error:
            self._stop_next()
            raise _failure(release, error, "The former release still serves.") from error
        self._point(f"releases/{release}")
        try:
            self._start(MAIN)
        except StartError as error:
            raise _failure(release, error, self._go_back(former)) from error

    def _go_back(self, former: str | None) -> str:
        """Start the former release again; say in a sentence what serves now."""
        self._point(former)
        try:
            self._start(MAIN)
        except StartError:
            # The new release passed its health check beside the service, so it goes on serving.
            return f"The former release did not start either; {NEXT}*.service still serves."
        self._stop_next()
        return "The former release serves again."

    def _without_service(self, release: str, former: str | None) -> None:
        self._point(f"releases/{release}")
        try:
            self._start(MAIN)
        except StartError as error:
            with suppress(HostError):
                self.systemd.act("stop", MAIN, timeout_seconds=self.limits.drain_seconds)
            self._point(former)
            raise _failure(release, error, "No release ran before it.") from error

    def _start(self, unit: str) -> None:
        """Restart a unit. Raises StartError with what it logged since."""
        former = self.systemd.invocation(unit)
        began = time.time()
        try:
            with suppress(HostError):
                self.systemd.act("reset-failed", unit, timeout_seconds=self.limits.start_seconds)
            self.systemd.act("restart", unit, timeout_seconds=self.limits.restart_seconds)
            state = self.systemd.states([unit])[unit]
            if state.active != "active":
                raise HostError("unit-failed", f"{unit} is {state.active} after its start")
        except HostError as error:
            log = self.systemd.log_since(unit, began, LOG_LINES, without=former)
            raise StartError(unit, error.message, log) from error

    def _stop_next(self) -> None:
        for unit in self.systemd.loaded(NEXT_PATTERN):
            with suppress(HostError):
                self.systemd.act("stop", unit, timeout_seconds=self.limits.drain_seconds)
                self.systemd.act("reset-failed", unit, timeout_seconds=self.limits.start_seconds)

    def _point(self, target: str | None) -> None:
        if target is None:
            remove(self.current)
        elif target_of(self.current) != target:
            point_link(self.current, target)


def _failure(release: str, error: StartError, outcome: str) -> HostError:
    """An error whose first line says why the release did not start."""
    return HostError(
        "handover-failed",
        f"release {release} did not start: {failing_line(error.log) or error.message}\n"
        f"{outcome} {error.unit}: {error.message}\n"
        f"Log of this start, the last {LOG_LINES} lines at most:\n{error.log or '(nothing)'}",
        f"correct the release and deploy again; `journalctl -u {error.unit}` on the host has "
        "older logs",
    )

"""The interface to the host's systemd; tests replace it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from polydev.hosttool.errors import HostError
from polydev.hosttool.listeners import declared_addresses, listens

ANSWER_SECONDS = 30.0
RUNNING = ("active", "activating", "reloading")


@dataclass(frozen=True)
class UnitStatus:
    """`active` and `enabled` are systemd's own words; `enabled` is empty where none applies."""

    exists: bool
    active: str = "inactive"
    enabled: str = ""

    @property
    def is_running(self) -> bool:
        return self.active in RUNNING

    @property
    def is_enabled(self) -> bool:
        return self.enabled == "enabled"


@dataclass(frozen=True)
class UnitTimeouts:
    """Time limits for a unit to start, and to finish its work."""

    start_seconds: float = 90.0
    drain_seconds: float = 90.0

    @property
    def restart_seconds(self) -> float:
        return self.start_seconds + self.drain_seconds


class Systemd(Protocol):
    def states(self, units: Sequence[str]) -> dict[str, UnitStatus]:
        """Return each unit's state; a unit that systemd does not know has `exists=False`."""

    def declared_sockets(self, unit: str) -> set[tuple[str, int]]:
        """Return the addresses and ports at which a socket unit should listen."""

    def listens(self, unit: str) -> bool:
        """Whether systemd itself listens at all addresses of a socket unit.

        An active unit may have lost its sockets, as when its file was broken for a while.
        """

    def loaded(self, pattern: str) -> list[str]:
        """Return the names of loaded units that match a shell pattern."""

    def act(self, verb: str, *units: str, timeout_seconds: float) -> None:
        """Run one verb of systemctl to its end. Raises HostError `unit-failed`."""

    def start_log(self, unit: str, lines: int) -> str:
        """The last lines that a unit logged since its latest start; else what systemd logged."""

    def run_later(self, unit: str, after_seconds: int, argv: Sequence[str]) -> None:
        """Let systemd start `argv` by a timer of this name. Raises HostError `unit-failed`."""

    def run_now(self, unit: str, argv: Sequence[str]) -> None:
        """Let systemd run `argv` as this unit, and do not wait. Raises HostError `unit-failed`."""


class RealSystemd:
    """systemctl, systemd-run and journalctl of this host."""

    def states(self, units: Sequence[str]) -> dict[str, UnitStatus]:
        if not units:
            return {}
        properties = "LoadState,ActiveState,UnitFileState"
        text = _output(["systemctl", "show", "--no-pager", "-p", properties, "--", *units])
        return states_of_show(text, units)

    def declared_sockets(self, unit: str) -> set[tuple[str, int]]:
        argv = ["systemctl", "show", "--no-pager", "-P", "Listen", "--", unit]
        return declared_addresses(_output(argv))

    def listens(self, unit: str) -> bool:
        return listens(self.declared_sockets(unit))

    def loaded(self, pattern: str) -> list[str]:
        argv = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager"]
        lines = _output([*argv, "--", pattern]).splitlines()
        return [line.split()[0] for line in lines if line.strip()]

    def act(self, verb: str, *units: str, timeout_seconds: float) -> None:
        _output(["systemctl", "--no-pager", verb, *units], timeout_seconds)

    def start_log(self, unit: str, lines: int) -> str:
        argv = ["journalctl", "--no-pager", "--quiet", "-n", str(lines), "-o", "cat"]
        try:
            start = _output(["systemctl", "show", "--no-pager", "-P", "InvocationID", "--", unit])
            if not (start := start.strip()):  # systemd knows of no start
                return _output([*argv, "-u", unit]).strip()
            own = _output([*argv, f"_SYSTEMD_INVOCATION_ID={start}"]).strip()
            return own or _output([*argv, "_PID=1", f"INVOCATION_ID={start}"]).strip()
        except HostError as error:
            return error.message

    def run_later(self, unit: str, after_seconds: int, argv: Sequence[str]) -> None:
        options = [f"--on-active={after_seconds}s", "--timer-property=AccuracySec=100ms"]
        _output(["systemd-run", "--quiet", f"--unit={unit}", *options, "--", *argv])

    def run_now(self, unit: str, argv: Sequence[str]) -> None:
        _output(["systemd-run", "--quiet", "--collect", f"--unit={unit}", "--", *argv])


def states_of_show(text: str, units: Iterable[str]) -> dict[str, UnitStatus]:
    """Read `systemctl show`: one block of Name=value for each unit, in the order asked."""
    blocks = [
        dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        for block in text.strip().split("\n\n")
    ]
    return {
        unit: UnitStatus(
            exists=block.get("LoadState", "not-found") != "not-found",
            active=block.get("ActiveState", "unknown"),
            enabled=block.get("UnitFileState", ""),
        )
        for unit, block in zip(units, blocks, strict=True)
    }


def _output(argv: Sequence[str], timeout_seconds: float = ANSWER_SECONDS) -> str:
    # Not at the top: most verbs start no process, and this import takes the longest.
    import subprocess

    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        words = f"{' '.join(argv)} did not end within {timeout_seconds:g} s"
        raise HostError("unit-failed", words) from error
    except OSError as error:
        raise HostError("unit-failed", f"cannot start {argv[0]}: {error}") from error
    if done.returncode != 0:
        words = f"{' '.join(argv)} exited with status {done.returncode}: {done.stderr.strip()}"
        raise HostError("unit-failed", words)
    return done.stdout

"""The interface to the host's systemd; tests replace it."""

from __future__ import annotations

import json
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

    def invocation(self, unit: str) -> str:
        """The id of a unit's present or last run; empty if it never ran."""

    def log_since(self, unit: str, since: float, lines: int, without: str = "") -> str:
        """The last lines that a unit logged since a Unix time; else what systemd logged of it.

        Lines of the invocation `without` are left out.
        """

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

    def invocation(self, unit: str) -> str:
        argv = ["systemctl", "show", "--no-pager", "-P", "InvocationID", "--", unit]
        return _output(argv).strip()

    def log_since(self, unit: str, since: float, lines: int, without: str = "") -> str:
        try:
            # journald may not have read yet what a process wrote before it exited.
            _output(["journalctl", "--sync"])
            log = ["journalctl", "--no-pager", "--quiet", "-o", "json", "--since", f"@{since:.6f}"]
            # Not by invocation: journald cannot tell that of a process that has exited.
            own = log_messages(_output([*log, f"_SYSTEMD_UNIT={unit}"]), without)
            all_of_unit = own or log_messages(_output([*log, "-u", unit]), without)
        except HostError as error:
            return error.message
        return "\n".join(all_of_unit[-lines:])

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


def log_messages(journal: str, without: str = "") -> list[str]:
    """Read the messages of `journalctl -o json`, but those of the invocation `without`.

    A message that is not UTF-8 comes as a list of bytes; one that is too long as null.
    Source: https://systemd.io/JOURNAL_EXPORT_FORMATS/#journal-json-format
    """
    messages = []
    for entry in map(json.loads, journal.splitlines()):
        message = entry.get("MESSAGE")
        if isinstance(message, list):
            message = bytes(message).decode(errors="replace")
        if message and (not without or entry.get("_SYSTEMD_INVOCATION_ID") != without):
            messages.append(str(message))
    return messages


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

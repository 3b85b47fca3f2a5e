"""The report about the VM network that `polydev-host network watch` writes, and its check.

The controller may not enter the slots' namespaces. A unit that runs as root compares them with what
is declared and writes the differences to a file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from polydev.controller.entities import Severity
from polydev.controller.host.system_status import NetworkCheck

FILE = Path("/run/polydev/network.json")
# The watch writes it every 10 s, or less often where there are very many slots.
FRESH_SECONDS = 60.0
WATCH_UNIT = "polydev-network-watch.service"
REPAIR_HINT = "./inv drift shows every difference, ./inv deploy corrects them"


class NoWatchReport(Exception):
    """There is no recent report; the message says why."""


@dataclass(frozen=True)
class NetworkDifference:
    """A difference from what is declared; `opens` where it may let through what is closed."""

    part: str
    text: str
    opens: bool

    @property
    def severity(self) -> Severity:
        return "critical" if self.opens or self.part == "bridge" else "warning"


def read_report(
    file: Path = FILE, clock: Callable[[], float] = time.monotonic
) -> tuple[NetworkDifference, ...]:
    """Return the newest report. Raises NoReport, or FileNotFoundError if there is none."""
    try:
        report = json.loads(file.read_bytes())
        age = clock() - float(report["at"])
        found = tuple(
            NetworkDifference(str(each["part"]), str(each["text"]), bool(each["opens"]))
            for each in report["differences"]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise NoWatchReport(f"{file} is not a valid report: {error}") from error
    if report.get("error"):
        raise NoWatchReport(str(report["error"]))
    if not 0 <= age <= FRESH_SECONDS:
        raise NoWatchReport(f"{file} is {age:.0f} s old: {WATCH_UNIT} is not running")
    return found


def declared_check(found: Sequence[NetworkDifference]) -> NetworkCheck:
    if not found:
        detail = "bridge, firewall and slots are as declared"
        return NetworkCheck(name="vm_network", status="healthy", detail=detail)
    severities = {each.severity for each in found}
    return NetworkCheck(
        name="vm_network",
        status="critical" if "critical" in severities else "warning",
        detail="; ".join(each.text for each in found),
        hint=REPAIR_HINT,
    )


def unread_check(why: str) -> NetworkCheck:
    return NetworkCheck(
        name="vm_network",
        status="unknown",
        detail=f"cannot check bridge, firewall and slots: {why}",
        hint=f"on the host, run systemctl status {WATCH_UNIT}; ./inv deploy installs it",
    )

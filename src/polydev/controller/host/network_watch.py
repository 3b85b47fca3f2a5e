"""The report of the host's watch of the network: read, and what its differences mean.

The controller may not enter the slots' namespaces, so a unit of root's compares them with what is
declared (`polydev-host network watch`) and leaves the result in a file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from polydev.controller.host.status import NetworkCheck
from polydev.controller.model import Severity

FILE = Path("/run/polydev/network.json")
# The watch writes it every 10 s, or less often where there are very many slots.
FRESH_SECONDS = 60.0
WATCH_UNIT = "polydev-network-watch.service"
MEND = "./inv drift shows every difference, ./inv deploy mends them"


class NoWatchReport(Exception):
    """The watch has not written what it found, or not lately. Says why."""


@dataclass(frozen=True)
class NetworkDifference:
    """Something that is not as declared; `opens` if it may let through what is closed."""

    part: str
    text: str
    opens: bool

    @property
    def severity(self) -> Severity:
        return "critical" if self.opens or self.part == "bridge" else "warning"


def read_report(
    file: Path = FILE, clock: Callable[[], float] = time.monotonic
) -> tuple[NetworkDifference, ...]:
    """The newest report of the watch. Raises NoReport, or FileNotFoundError if there is none."""
    try:
        report = json.loads(file.read_bytes())
        age = clock() - float(report["at"])
        found = tuple(
            NetworkDifference(str(each["part"]), str(each["text"]), bool(each["opens"]))
            for each in report["differences"]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise NoWatchReport(f"{file} is no report: {error}") from error
    if report.get("error"):
        raise NoWatchReport(str(report["error"]))
    if not 0 <= age <= FRESH_SECONDS:
        raise NoWatchReport(f"{file} is {age:.0f} s old: {WATCH_UNIT} does not run")
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
        hint=MEND,
    )


def unread_check(why: str) -> NetworkCheck:
    return NetworkCheck(
        name="vm_network",
        status="unknown",
        detail=f"bridge, firewall and slots cannot be compared: {why}",
        hint=f"on the host: systemctl status {WATCH_UNIT}; ./inv deploy brings it",
    )

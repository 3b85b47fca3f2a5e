"""Findings of the doctor, and checks that machine and host share. Pure: facts → findings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "problem"]
GIB = 1024**3
# Differences that the text of one finding names; the JSON has all.
MOST_SHOWN = 5
SEPARATOR = "; "
TCG_TEXT = "TCG emulates their CPU, which is slow and no isolation for strangers"
KVM_TODO = "turn on virtualization in the firmware, or nested virtualization where it is a VM"


@dataclass(frozen=True)
class DoctorFinding:
    """The result of one check. `where` is the machine; `todo` says what to do, if anything."""

    where: str
    name: str
    state: State
    found: str
    todo: str | None = None

    def as_dict(self) -> dict[str, str | None]:
        return {
            "where": self.where,
            "name": self.name,
            "state": self.state,
            "found": self.found,
            "todo": self.todo,
        }

    @property
    def summary(self) -> str:
        """The first differences found, and how many more there are."""
        parts = self.found.split(SEPARATOR)
        if len(parts) <= MOST_SHOWN:
            return self.found
        more = f"and {len(parts) - MOST_SHOWN} more, which --json shows"
        return SEPARATOR.join([*parts[:MOST_SHOWN], more])


@dataclass(frozen=True)
class DiskSpace:
    """Size and free space of the filesystem of a folder, in bytes."""

    size: int
    free: int


@dataclass(frozen=True)
class Room:
    """Required space in bytes: below `least` something fails, below `enough` it soon will."""

    least: int
    enough: int


def has_problem(findings: Iterable[DoctorFinding]) -> bool:
    return any(finding.state == "problem" for finding in findings)


def gibibytes(size: float) -> str:
    return f"{size / GIB:,.1f} GiB"


def space_finding(
    where: str, name: str, disk: DiskSpace | None, room: Room, todo: str
) -> DoctorFinding:
    if disk is None:
        return DoctorFinding(
            where, name, "warning", "cannot be read", "check that the folder exists"
        )
    found = f"{gibibytes(disk.free)} of {gibibytes(disk.size)} free"
    if disk.free >= room.enough:
        return DoctorFinding(where, name, "ok", found)
    state: State = "problem" if disk.free < room.least else "warning"
    wanted = room.least if state == "problem" else room.enough
    return DoctorFinding(where, name, state, f"{found}, {gibibytes(wanted)} needed", todo)


def version_of(text: str) -> tuple[int, ...] | None:
    """Return the first `N.N…` in a program's version text."""
    for word in text.replace("(", " ").split():
        parts = word.split(".")
        if len(parts) > 1 and parts[0].isdecimal() and parts[1].isdecimal():
            return tuple(int(part) for part in parts[:3] if part.isdecimal())
    return None


OLDEST_QEMU = (6, 2)  # Ubuntu 22.04's


def qemu_finding(where: str, said: str | None, todo: str) -> DoctorFinding:
    version = version_of(said or "")
    if said is None or version is None:
        return DoctorFinding(where, "QEMU", "problem", "not installed, or it does not run", todo)
    shown = ".".join(map(str, version))
    if version < OLDEST_QEMU:
        oldest = ".".join(map(str, OLDEST_QEMU))
        return DoctorFinding(
            where, "QEMU", "warning", f"{shown}; tested with {oldest} and newer", todo
        )
    return DoctorFinding(where, "QEMU", "ok", shown)

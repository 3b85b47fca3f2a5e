"""What the doctor found, as values. Rules are pure: facts → findings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "problem"]
GIB = 1024**3
TCG_TEXT = "TCG emulates their CPU, which is slow and no isolation for strangers"
KVM_TODO = "turn on virtualization in the firmware, or nested virtualization where it is a VM"


@dataclass(frozen=True)
class DoctorFinding:
    """One thing looked at. `where` is the machine; `todo` is None where nothing is to be done."""

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


@dataclass(frozen=True)
class DiskSpace:
    """Room of the filesystem that holds a folder, in bytes."""

    size: int
    free: int


@dataclass(frozen=True)
class Room:
    """How much must be free, in bytes: below `least` something fails, below `enough` soon."""

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
            where, name, "warning", "cannot be read", "see that the folder is there"
        )
    found = f"{gibibytes(disk.free)} of {gibibytes(disk.size)} free"
    if disk.free >= room.enough:
        return DoctorFinding(where, name, "ok", found)
    state: State = "problem" if disk.free < room.least else "warning"
    wanted = room.least if state == "problem" else room.enough
    return DoctorFinding(where, name, state, f"{found}, {gibibytes(wanted)} are needed", todo)


def version_of(text: str) -> tuple[int, ...] | None:
    """The first `N.N…` in what a program says of its version."""
    for word in text.replace("(", " ").split():
        parts = word.split(".")
        if len(parts) > 1 and parts[0].isdecimal() and parts[1].isdecimal():
            return tuple(int(part) for part in parts[:3] if part.isdecimal())
    return None


OLDEST_QEMU = (6, 2)  # Ubuntu 22.04's


def qemu_finding(where: str, said: str | None, todo: str) -> DoctorFinding:
    version = version_of(said or "")
    if said is None or version is None:
        return DoctorFinding(where, "QEMU", "problem", "not there, or it does not run", todo)
    shown = ".".join(map(str, version))
    if version < OLDEST_QEMU:
        oldest = ".".join(map(str, OLDEST_QEMU))
        return DoctorFinding(where, "QEMU", "warning", f"{shown}; tried from {oldest} on", todo)
    return DoctorFinding(where, "QEMU", "ok", shown)

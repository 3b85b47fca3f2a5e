"""The processes that use most of the host, read from /proc.

Command lines may hold secrets, so a process is shown by its short name and its unit only.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

import psutil

from polydev.controller.host.blocking_call import BlockingCall, NoAnswer

PROC = Path("/proc")
# A percentage over less time is inaccurate; over more it is not a current one.
SHORTEST_SPAN_SECONDS = 0.5
LONGEST_SPAN_SECONDS = 15.0
VM_UNIT = re.compile(r"microvm@(\d+)\.service")
CONTROLLER_UNIT = re.compile(r"master-controller(-next@.*)?\.service")
UNIT = re.compile(r".+\.(service|scope|socket|mount|swap)")

By = Literal["cpu", "memory"]
Kind = Literal["vm", "controller", "other"]
Key = tuple[int, int]  # pid and start, since the kernel reuses pids


@dataclass(frozen=True)
class ProcessTimes:
    """Counters of one process. `started` is in ticks since the host's start."""

    pid: int
    name: str
    cpu_ticks: int
    started: int
    memory_bytes: int

    @property
    def key(self) -> Key:
        return self.pid, self.started


@dataclass(frozen=True)
class ProcessTable:
    """All processes at one time of `time.monotonic`."""

    at: float
    processes: Mapping[Key, ProcessTimes]


@dataclass(frozen=True)
class Process:
    """A process and what it uses.

    user            None where this service's user namespace does not show it
    cpu_percent     of all the host's cores together
    memory_bytes    resident
    belongs_to      `vm`: the process of a VM; `controller`: this service
    unit, slot      the unit of systemd that it runs in, and the slot of a VM's unit
    """

    pid: int
    name: str
    user: str | None
    cpu_percent: float
    memory_bytes: int
    belongs_to: Kind
    unit: str | None
    slot: int | None


def process_times(stat: str, page_bytes: int) -> ProcessTimes:
    """Parse the text of /proc/PID/stat. Raises ValueError and IndexError if it is malformed.

    The name may hold blanks and brackets, so fields are counted from the last bracket on.
    """
    head, _, rest = stat.rpartition(")")
    pid, _, name = head.partition("(")
    fields = rest.split()
    return ProcessTimes(
        pid=int(pid),
        name="".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in name),
        cpu_ticks=int(fields[11]) + int(fields[12]),
        started=int(fields[19]),
        memory_bytes=max(int(fields[21]), 0) * page_bytes,
    )


def cpu_percents(
    before: ProcessTable, after: ProcessTable, ticks_per_second: int, cores: int
) -> dict[Key, float]:
    """Return each process's share of all cores between two measurements, in percent.

    Of a process that started in between all CPU time counts.
    """
    available = (after.at - before.at) * ticks_per_second * cores
    found = {}
    for key, each in after.processes.items():
        earlier = before.processes.get(key)
        spent = each.cpu_ticks - (earlier.cpu_ticks if earlier else 0)
        share = 100.0 * spent / available if available > 0 else 0.0
        found[key] = round(min(max(share, 0.0), 100.0), 1)
    return found


def unit_of(cgroup: str) -> str | None:
    """Return the innermost systemd unit that the text of /proc/PID/cgroup names."""
    lines = [line for line in cgroup.splitlines() if line.startswith(("0::", "1:name=systemd:"))]
    paths = (PurePosixPath(line.split(":", 2)[2]) for line in lines)
    parts = (part for path in paths for part in reversed(path.parts))
    return next((part for part in parts if UNIT.fullmatch(part)), None)


def belonging(unit: str | None, pid: int, own_pid: int) -> tuple[Kind, int | None]:
    """Return what a process of a unit belongs to, and the slot if that is a VM."""
    if found := VM_UNIT.fullmatch(unit or ""):
        return "vm", int(found[1])
    if pid == own_pid or CONTROLLER_UNIT.fullmatch(unit or ""):
        return "controller", None
    return "other", None


def read_processes(proc: Path = PROC, clock: Callable[[], float] = time.monotonic) -> ProcessTable:
    """Read all processes. Raises OSError where processes of other users are hidden.

    Processes that end meanwhile are left out.
    """
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    found = {}
    # Process 1 always exists: where it is hidden, so are the others.
    (proc / "1/stat").read_bytes()
    for folder in proc.iterdir():
        if folder.name.isdecimal():
            with suppress(OSError, ValueError, IndexError):
                text = (folder / "stat").read_bytes().decode(errors="replace")
                each = process_times(text, page_bytes)
                found[each.key] = each
    return ProcessTable(clock(), found)


class Processes:
    """Reads processes; percentages of CPU are since the previous call, or over half a second."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._read = BlockingCall(partial(read_processes, proc))
        self._spans: tuple[ProcessTable, ProcessTable] | None = None
        self._one_at_a_time = asyncio.Lock()

    async def most(self, by: By, limit: int) -> list[Process]:
        """Return the `limit` processes that use most now. Raises NoAnswer."""
        async with self._one_at_a_time:
            before, after = await self._measure()
        ticks, cores = os.sysconf("SC_CLK_TCK"), psutil.cpu_count() or 1
        percents = cpu_percents(before, after, ticks, cores)
        users = {key: each.memory_bytes for key, each in after.processes.items()}
        first, second = (percents, users) if by == "cpu" else (users, percents)
        keys = sorted(after.processes, key=lambda key: (-first[key], -second[key], key))[:limit]
        chosen = [(after.processes[key], percents[key]) for key in keys]
        return await BlockingCall(lambda: [self._process(*each) for each in chosen])()

    async def _measure(self) -> tuple[ProcessTable, ProcessTable]:
        now = time.monotonic()
        if self._spans and now - self._spans[1].at < SHORTEST_SPAN_SECONDS:
            return self._spans
        if self._spans and now - self._spans[1].at <= LONGEST_SPAN_SECONDS:
            before = self._spans[1]
        else:
            before = await self._read()
            await asyncio.sleep(SHORTEST_SPAN_SECONDS)
        self._spans = before, await self._read()
        return self._spans

    def _process(self, each: ProcessTimes, cpu_percent: float) -> Process:
        unit, user = None, None
        with suppress(OSError):  # it has ended
            unit = unit_of((self._proc / str(each.pid) / "cgroup").read_text(errors="replace"))
            user = user_name((self._proc / str(each.pid)).stat().st_uid)
        kind, slot = belonging(unit, each.pid, os.getpid())
        return Process(each.pid, each.name, user, cpu_percent, each.memory_bytes, kind, unit, slot)


def user_name(uid: int) -> str | None:
    """Return a user's name, or the uid of a user without a name.

    None for the kernel's overflow user, which stands for all users outside a user namespace.
    """
    if uid == int((PROC / "sys/kernel/overflowuid").read_text()):
        return None
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def why_unavailable(error: NoAnswer) -> str:
    """Return why processes cannot be shown."""
    return (
        f"cannot read the processes of other users: {error}; check whether /proc is mounted with "
        "hidepid, or the controller's unit has ProtectProc"
    )

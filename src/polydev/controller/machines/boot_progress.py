"""The progress of a boot, and its deadlines. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from datetime import datetime

from polydev.controller.entities import Vm
from polydev.controller.settings import BootDeadlines
from polydev.vm import boot_stages
from polydev.vm.boot_stages import STAGES, Stage
from polydev.vm.cpu_wait_time import NO_WAIT, CpuWait, Verdict, verdict

# How much of the console is kept, to find a panic or a failed unit; and how much of it is read
# again with the next chunk, to find a mark that two chunks share. A console has no end.
KEPT_CHARACTERS = 64 * 1024
OVERLAP_CHARACTERS = 2048
MAX_FAILED_UNITS = 20
TAIL_LINES = 15
TAIL_LINE_CHARACTERS = 400


class ConsoleParser:
    """Finds stages and failures in a serial console as it grows.

    seen            stages whose mark the console has shown
    failed_units    units that systemd could not start, as it wrote there
    """

    def __init__(self) -> None:
        self.seen: set[Stage] = set()
        self.failed_units: list[str] = []
        self._text = ""
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode

    def feed(self, data: bytes) -> None:
        new = self._decode(data)
        if not new:
            return
        fresh = self._text[-OVERLAP_CHARACTERS:] + new
        self.seen.update(boot_stages.stages_seen(fresh))
        for unit in boot_stages.failed_units(fresh):
            if unit not in self.failed_units and len(self.failed_units) < MAX_FAILED_UNITS:
                self.failed_units.append(unit)
        self._text = (self._text + new)[-KEPT_CHARACTERS:]

    @property
    def boot_error(self) -> str | None:
        """Return why init will never start, if kernel or initrd wrote that."""
        return boot_stages.kernel_panic(self._text)

    @property
    def tail(self) -> str:
        """The last lines of the console, to be shown."""
        lines = boot_stages.last_lines(self._text, TAIL_LINES)
        return "\n".join(line[:TAIL_LINE_CHARACTERS] for line in lines)


def new_stages(vm: Vm, seen: Iterable[Stage]) -> list[Stage]:
    """Return stages seen but not yet noted, in order; `ready` is noted with the VM's state."""
    known = {"none", "ready", *vm.timings}
    new = set(seen) - known
    return [stage for stage in STAGES if stage in new]


def next_stage(stage: Stage) -> Stage:
    """Return the stage after `stage`; after the last one it is the last one again."""
    return STAGES[min(STAGES.index(stage) + 1, len(STAGES) - 1)]


def overdue(vm: Vm, deadlines: BootDeadlines, at: datetime, wait: CpuWait = NO_WAIT) -> str | None:
    """Say which stage was not reached in time; None while there is time.

    Time counts from the database's row, so that a restart of the controller gives no VM more time.
    The part of it that the VM waited for a CPU, by `wait`, does not count.
    """
    awaited = next_stage(vm.stage)
    since = vm.started_at if vm.stage == "none" else vm.stage_at
    if since is None:
        return None
    limit: float = getattr(deadlines, awaited)
    spent = wait.over((at - since).total_seconds())
    late = verdict(spent, limit)
    if late == "in time":
        return None
    words = f"stage {awaited} was not reached within {limit:g} s; the last stage was {vm.stage}"
    return with_wait(words, spent, late)


def with_wait(words: str, wait: CpuWait, late: Verdict) -> str:
    """Add the wait for a CPU to `words` on what came too late, if the machine was busy."""
    if late == "starved":
        return f"the machine is too busy: {wait}; {words}"
    return f"{words}; {wait}" if wait.is_busy else words

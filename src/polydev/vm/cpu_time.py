"""CPU times of a VM's process, read from /proc. Any user may read them.

/proc/PID/task/TID/schedstat    ran, waited for a CPU (nanoseconds), turns
/proc/stat                      what all CPUs did, and what was stolen by a host above
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from polydev.vm.cpu_wait_time import CpuSample, CpuWait, ThreadTimes, wait_between

PROC = Path("/proc")
SPAN_SECONDS = 2.0
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
Reader = Callable[[], CpuSample]


def cpu_sample(pid: int, at: float | None = None, proc: Path = PROC) -> CpuSample:
    """Return the times of a process's threads; none if it has ended or cannot be read."""
    threads = {}
    with suppress(OSError):
        for task in (proc / str(pid) / "task").iterdir():
            with suppress(OSError, ValueError):
                threads[int(task.name)] = thread_times((task / "schedstat").read_text())
    try:
        cpus = len(os.sched_getaffinity(pid))
    except OSError:
        cpus = os.cpu_count() or 1
    busy, stolen = machine_times((proc / "stat").read_text())
    return CpuSample(time.monotonic() if at is None else at, threads, cpus, busy, stolen)


def thread_times(schedstat: str) -> ThreadTimes:
    """Parse a schedstat file. Raises ValueError."""
    ran, waited, _ = (int(word) for word in schedstat.split())
    return ThreadTimes(ran / 1e9, waited / 1e9)


def machine_times(stat: str) -> tuple[float, float]:
    """Parse /proc/stat: seconds that all CPUs were busy, and that were stolen from them."""
    words = stat.partition("\n")[0].split()[1:9]
    user, nice, system, _, _, irq, softirq, steal = (int(word) for word in words)
    return (user + nice + system + irq + softirq) / TICKS_PER_SECOND, steal / TICKS_PER_SECOND


class CpuWatch:
    """Adds up how long a process has waited for a CPU since the watch began."""

    def __init__(self, read: Reader, since: CpuSample | None = None) -> None:
        self._read = read
        self._last = since or read()
        self._settled = CpuWait()

    def total(self) -> CpuWait:
        """The wait until now."""
        now = self._read()
        total = self._settled + wait_between(self._last, now)
        # Short spans tell busy and idle periods apart. A wait is counted when it ends.
        if now.at - self._last.at >= SPAN_SECONDS:
            self._settled, self._last = total, now
        return total

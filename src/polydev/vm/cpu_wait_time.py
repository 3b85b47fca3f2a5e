"""The time that a VM waited for a CPU, and its effect on deadlines. Pure.

The kernel counts for each thread how long it ran, and how long it was ready to run but had to
wait. Deadlines are meant for a machine without other work, so the time that a VM waited does not
count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

# The wait for a CPU makes no deadline longer than this many times itself.
LONGEST_FACTOR = 4.0
# With this share of waiting or more, a missing answer proves nothing about the VM.
BUSY_SHARE = 0.25
# With this share or more, a late VM is not to blame: its programs may have run into timeouts of
# each other.
STARVED_SHARE = 0.5


@dataclass(frozen=True)
class ThreadTimes:
    """Seconds since the thread's start."""

    ran: float = 0.0
    waited: float = 0.0


@dataclass(frozen=True)
class CpuSample:
    """CPU times of a process and of its machine at one moment, in seconds.

    at              time of any clock that is the same for all compared samples
    threads         by thread id; empty if they could not be read
    cpus            on how many CPUs they may run
    busy, stolen    of all CPUs since the machine's start: the time that they ran, and the time
                    that the machine, itself a VM, had to wait for its own host
    """

    at: float
    threads: Mapping[int, ThreadTimes]
    cpus: int
    busy: float = 0.0
    stolen: float = 0.0

    @property
    def ran(self) -> float:
        """Seconds that the process's threads ran."""
        return sum(thread.ran for thread in self.threads.values())

    def at_start(self, at: float) -> CpuSample:
        """Return a sample of the moment `at`, when the threads started and had not run yet."""
        return replace(self, at=at, threads=dict.fromkeys(self.threads, ThreadTimes()))


@dataclass(frozen=True)
class CpuWait:
    """A span of time, and how much of it the VM spent waiting for a CPU."""

    seconds: float = 0.0
    waited_seconds: float = 0.0

    def __add__(self, other: CpuWait) -> CpuWait:
        return CpuWait(self.seconds + other.seconds, self.waited_seconds + other.waited_seconds)

    def __str__(self) -> str:
        return f"the VM waited {self.waited_seconds:.0f} s of {self.seconds:.0f} s for a CPU"

    @property
    def undisturbed_seconds(self) -> float:
        """Return how long this would have taken on a machine without other work."""
        return self.seconds - self.waited_seconds

    @property
    def share(self) -> float:
        """The part of the time that was lost, from 0 to 1."""
        return self.waited_seconds / self.seconds if self.seconds > 0 else 0.0

    @property
    def is_busy(self) -> bool:
        return self.share >= BUSY_SHARE

    @property
    def slowdown(self) -> float:
        """Return how many times longer work took than on a quiet machine, within limits."""
        return 1 / max(1 - self.share, 1 / LONGEST_FACTOR)

    def over(self, seconds: float) -> CpuWait:
        """The same share of waiting over another span."""
        return CpuWait(seconds, self.share * seconds)


NO_WAIT = CpuWait()


def wait_between(before: CpuSample, after: CpuSample) -> CpuWait:
    """Return how long a VM waited between two samples of its process.

    Threads that wait for each other, because they are more than the CPUs, would do so on a quiet
    machine too. If on average at most one thread was active, each wait delayed the VM by its whole
    length; if several were active, they waited at the same time.
    """
    seconds = max(after.at - before.at, 0.0)
    if not before.threads:
        return CpuWait(seconds)
    ran = waited = 0.0
    for thread, now in after.threads.items():
        then = before.threads.get(thread, ThreadTimes())
        ran += max(now.ran - then.ran, 0.0)
        waited += max(now.waited - then.waited, 0.0)
    if after.busy > before.busy:
        waited += ran * max(after.stolen - before.stolen, 0.0) / (after.busy - before.busy)
    waited = min(waited, max(after.cpus * seconds - ran, 0.0))
    return CpuWait(seconds, waited * seconds / max(seconds, ran + waited, 1e-9))


Verdict = Literal["in time", "late", "starved"]


def verdict(wait: CpuWait, limit_seconds: float) -> Verdict:
    """Compare a wait with a deadline, in seconds of an undisturbed machine.

    late        the VM had all the time that it should need
    starved     the time is over, but the machine is to blame
    """
    at_most = LONGEST_FACTOR * limit_seconds
    if wait.undisturbed_seconds < limit_seconds and wait.seconds < at_most:
        return "in time"
    return "starved" if wait.share >= STARVED_SHARE else "late"

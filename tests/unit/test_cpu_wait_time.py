"""The time that a VM waited for a CPU, and its effect on deadlines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from polydev.vm.cpu_time import SPAN_SECONDS, CpuWatch, cpu_sample, machine_times, thread_times
from polydev.vm.cpu_wait_time import (
    LONGEST_FACTOR,
    CpuSample,
    CpuWait,
    ThreadTimes,
    verdict,
    wait_between,
)

STAT = "cpu  32938 100 13781 97204 1172 0 259 75 500 0\ncpu0 1 2 3 4 5 6 7 8 9 10\nintr 5\n"


def sample(
    at: float, *threads: tuple[float, float], cpus: int = 2, busy: float = 0, stolen: float = 0
) -> CpuSample:
    times = {number: ThreadTimes(*each) for number, each in enumerate(threads)}
    return CpuSample(at, times, cpus, busy, stolen)


@pytest.mark.parametrize(
    ("threads", "lost"),
    [
        pytest.param([(0, 0)], 0, id="idle"),
        pytest.param([(10, 0)], 0, id="alone on its CPU"),
        pytest.param([(5, 5)], 5, id="shares its CPU with one other"),
        pytest.param([(0.5, 0.5)], 0.5, id="mostly idle, and late each time it wakes up"),
        pytest.param([(5, 5), (5, 5)], 5, id="two at once wait at the same time"),
        pytest.param([(10, 0), (10, 0)], 0, id="two at once on two CPUs"),
        pytest.param([(2, 2), (3, 3)], 5, id="one after the other"),
        pytest.param([(0, 10), (0, 10), (0, 10)], 10, id="nothing runs at all"),
    ],
)
def test_lost_time_of_ten_seconds(threads: list[tuple[float, float]], lost: float) -> None:
    before = sample(100, *((7.0, 9.0) for _ in threads))
    after = sample(110, *((7.0 + ran, 9.0 + waited) for ran, waited in threads))
    wait = wait_between(before, after)
    assert wait.seconds == 10
    assert wait.waited_seconds == pytest.approx(lost)
    assert wait.undisturbed_seconds == pytest.approx(10 - lost)


def test_threads_sharing_their_own_cpu_lose_nothing() -> None:
    """Two busy threads share the only CPU of a quiet machine; then another program joins."""
    before = sample(0, (0, 0), (0, 0), cpus=1)
    assert wait_between(before, sample(10, (5, 5), (5, 5), cpus=1)) == CpuWait(10, 0)
    assert wait_between(before, sample(10, (2, 8), (3, 7), cpus=1)) == CpuWait(10, 5)


def test_new_and_ended_threads_are_counted() -> None:
    before = CpuSample(0, {1: ThreadTimes(5, 5), 2: ThreadTimes(50, 50)}, 2)
    after = CpuSample(10, {1: ThreadTimes(6, 7), 3: ThreadTimes(1, 1)}, 2)
    assert wait_between(before, after) == CpuWait(10, 3)


def test_unreadable_times_count_as_no_wait() -> None:
    assert wait_between(sample(0), sample(10, (900, 900))) == CpuWait(10, 0)
    assert wait_between(sample(0, (5, 5)), sample(10)) == CpuWait(10, 0)
    # A clock that was set back, and a thread id that came again.
    assert wait_between(sample(10, (5, 5)), sample(0, (1, 1))) == CpuWait(0, 0)


def test_stolen_time_counts_as_wait() -> None:
    before, after = sample(0, (0, 0), busy=100, stolen=10), sample(10, (5, 0), busy=110, stolen=20)
    assert wait_between(before, after) == CpuWait(10, 5)


def test_wait_since_the_start_of_a_process() -> None:
    now = sample(130, (10, 20), busy=900, stolen=90)
    assert wait_between(now.at_start(100), now) == CpuWait(30, 20)


@pytest.mark.parametrize(
    ("wait", "says"),
    [
        (CpuWait(59.9), "in time"),
        (CpuWait(60), "late"),
        (CpuWait(90, 30.1), "in time"),
        (CpuWait(90, 30), "late"),
        (CpuWait(60 * LONGEST_FACTOR - 0.1, 200), "in time"),
        (CpuWait(60 * LONGEST_FACTOR, 200), "starved"),
        # The VM had all its time, but an earlier wait may have caused the failure.
        (CpuWait(180, 120), "starved"),
        (CpuWait(110, 50), "late"),
    ],
)
def test_verdict_on_a_deadline(wait: CpuWait, says: str) -> None:
    assert verdict(wait, 60) == says


def test_cpu_wait_sums_shares_and_text() -> None:
    wait = CpuWait(40, 30) + CpuWait(20, 13)
    assert str(wait) == "the VM waited 43 s of 60 s for a CPU"
    assert wait.is_busy
    assert wait.over(120).seconds == 120
    assert wait.over(120).waited_seconds == pytest.approx(86)
    assert not CpuWait(60, 5).is_busy
    assert (CpuWait().share, CpuWait().slowdown) == (0, 1)
    assert CpuWait(60, 30).slowdown == 2
    assert CpuWait(60, 60).slowdown == LONGEST_FACTOR


def samples(*each: CpuSample) -> Iterator[CpuSample]:
    yield from each


def test_busy_and_idle_periods_are_measured_separately() -> None:
    """One thread waits for a while, then the guest is idle and loses no more time."""
    taken = samples(
        sample(0, (0, 0), (0, 0)),
        sample(10, (5, 5), (5, 5)),  # both at once: 5 lost
        sample(100, (5, 5), (5, 5)),
    )
    watch = CpuWatch(lambda: next(taken))
    assert watch.total() == CpuWait(10, 5)
    assert watch.total() == CpuWait(100, 5)


def test_long_wait_reported_late_is_counted() -> None:
    step = SPAN_SECONDS / 4
    taken = samples(sample(0, (0, 0)), sample(step, (0, 0)), sample(2 * step, (0, 2 * step)))
    watch = CpuWatch(lambda: next(taken))
    assert watch.total() == CpuWait(step, 0)
    assert watch.total() == CpuWait(2 * step, 2 * step)


def test_kernel_figures_are_parsed() -> None:
    assert thread_times("193084054 22276035 414\n") == ThreadTimes(0.193084054, 0.022276035)
    second = os.sysconf("SC_CLK_TCK")
    busy, stolen = machine_times(STAT)
    assert busy * second == pytest.approx(32938 + 100 + 13781 + 259)
    assert stolen * second == pytest.approx(75)


def test_cpu_sample_of_existing_and_missing_processes(tmp_path: Path) -> None:
    own = cpu_sample(os.getpid())
    assert own.threads[os.getpid()].ran > 0
    assert own.busy > 0
    (tmp_path / "stat").write_text(STAT)
    (tmp_path / "7/task/7").mkdir(parents=True)  # a kernel without these figures
    assert cpu_sample(7, 5.0, tmp_path).threads == {}
    assert cpu_sample(8, 5.0, tmp_path).at == 5.0

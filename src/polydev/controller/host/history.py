"""The host's history as rows of values, for charts and for export. Pure.

    samples and starts of sessions --rows--> a row for each sample, a value for each column

A column's name ends with its unit, and names a mount or interface in brackets.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from statistics import median
from typing import Any, get_args

from pydantic import Field

from polydev.controller.host.network_checks import SLOT_PORT_PREFIX
from polydev.controller.host.psutil_reader import rate
from polydev.controller.host.sample import HELD_STATES, Sample
from polydev.controller.host.system_status import FrozenModel
from polydev.controller.session_and_vm_states import LIVE_SESSION_STATES
from polydev.controller.store.session_start_times import SessionStart, StartKind

Value = float | int | str | None
Row = dict[str, Value]
Timed = tuple[datetime, Sample]

START_KINDS: tuple[StartKind, ...] = get_args(StartKind)


class StartTimes(FrozenModel):
    """Starts of the sessions that became ready between two samples."""

    count: int
    median_seconds: float
    max_seconds: float


class TimedSample(Sample):
    """A sample with its time and the starts since the sample before, by how their VM was made."""

    at: datetime
    starts: dict[StartKind, StartTimes] = Field(default={})


class History(FrozenModel):
    samples: list[TimedSample]


def without_vms(sample: Sample) -> Sample:
    """Return a sample without VMs and without network ports of slots, which rows do not need."""
    return sample.model_copy(
        update={"vm": [], "rx_bytes": _own(sample.rx_bytes), "tx_bytes": _own(sample.tx_bytes)}
    )


def _own(counters: Mapping[str, int]) -> dict[str, int]:
    return {
        name: value for name, value in counters.items() if not name.startswith(SLOT_PORT_PREFIX)
    }


def starts_by_span(
    times: Sequence[datetime], starts: Iterable[SessionStart]
) -> list[dict[StartKind, StartTimes]]:
    """Return the starts since the sample before, for each sample, by how the VM was made.

    `times` are those of the samples, in order. Starts after the last sample are left out.
    """
    seconds: list[dict[StartKind, list[float]]] = [defaultdict(list) for _ in times]
    for each in starts:
        span = bisect_left(times, each.ready_at)
        if span < len(times):
            seconds[span][each.how].append(each.seconds)
    return [{how: _start_times(some) for how, some in found.items()} for found in seconds]


def timed_samples(samples: Sequence[Timed], starts: Iterable[SessionStart]) -> list[TimedSample]:
    """Return samples with their times and starts."""
    spans = starts_by_span([at for at, _ in samples], starts)
    return [
        TimedSample(**dict(sample), at=at, starts=span)
        for (at, sample), span in zip(samples, spans, strict=True)
    ]


def _start_times(seconds: Sequence[float]) -> StartTimes:
    return StartTimes(
        count=len(seconds),
        median_seconds=round(median(seconds), 3),
        max_seconds=round(max(seconds), 3),
    )


def rows(
    samples: Sequence[Timed], starts: Iterable[SessionStart], before: Timed | None = None
) -> list[Row]:
    """Return a row for each sample; `before` is the sample before the first one, if any."""
    found = []
    spans = starts_by_span([at for at, _ in samples], starts)
    for (at, sample), span in zip(samples, spans, strict=True):
        found.append(_row(at, sample, span, before))
        before = (at, sample)
    return found


def _row(
    at: datetime, sample: Sample, starts: Mapping[StartKind, StartTimes], before: Timed | None
) -> Row:
    slots = sample.slots
    row: Row = {
        "at": at.isoformat().replace("+00:00", "Z"),
        "cpu_percent": sample.cpu,
        "memory_percent": sample.memory,
        **{f"disk_percent[{mount}]": value for mount, value in sample.disk.items()},
        **_rates(at, sample, before),
        "temperature_celsius": sample.temperature,
        "load_average_1_minute": sample.load_average[0] if sample.load_average else None,
        "slots_total": slots.total if slots else None,
        "slots_held": slots.held if slots else None,
        "pool_vms": slots.pooled if slots else None,
        "pool_primed_vms": slots.primed if slots else None,
    }
    row |= {f"sessions_{state}": sample.sessions.get(state) for state in LIVE_SESSION_STATES}
    row |= {f"vms_{state}": sample.vms.get(state) for state in HELD_STATES}
    for how in START_KINDS:
        row |= _start_columns(how, starts.get(how))
    reasons = (f"{name}: {why}" for name, why in sample.unavailable.items())
    return {**row, "unavailable": "; ".join(reasons) or None}


def _start_columns(how: StartKind, times: StartTimes | None) -> Row:
    return {
        f"starts_{how}": times.count if times else 0,
        f"start_median_seconds[{how}]": times.median_seconds if times else None,
        f"start_max_seconds[{how}]": times.max_seconds if times else None,
    }


def _rates(at: datetime, sample: Sample, before: Timed | None) -> Row:
    earlier, seconds = (before[1], (at - before[0]).total_seconds()) if before else (Sample(), 0.0)
    counted = (
        ("received", _own(sample.rx_bytes), earlier.rx_bytes),
        ("sent", _own(sample.tx_bytes), earlier.tx_bytes),
    )
    return {
        f"{verb}_bytes_per_second[{name}]": rate(value, past.get(name), seconds)
        for verb, counters, past in counted
        for name, value in sorted(counters.items())
    }


def columns_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the columns of all rows, each once, with those of one kind side by side."""
    found = dict.fromkeys(name for row in rows for name in row)
    kinds: dict[str, list[str]] = {}
    for name in found:
        kinds.setdefault(name.partition("[")[0], []).append(name)
    return [name for names in kinds.values() for name in names]

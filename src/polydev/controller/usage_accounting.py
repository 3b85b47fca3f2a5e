"""Calculate the usage of each user from counters of VMs, which only grow; pure.

A VM's counters are read repeatedly. Their growth since the last reading is the usage of the VM's
session. The reading is stored with the sum, so that nothing counts twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from datetime import date, datetime, time, timedelta, timezone
from functools import reduce
from operator import add
from typing import Any

from polydev.controller.entities import Session, Vm

DAY = timedelta(days=1)
# Default number of days of a report, today included.
USUAL_DAYS = 30


@dataclass(frozen=True)
class Use:
    """The usage of one user.

    vm_seconds      time in which VMs of sessions ran; paused time does not count
    cpu_seconds     CPU time of these VMs
    received_bytes, sent_bytes  network traffic of these VMs
    sessions        sessions started
    """

    vm_seconds: float = 0.0
    cpu_seconds: float = 0.0
    received_bytes: int = 0
    sent_bytes: int = 0
    sessions: int = 0

    def __add__(self, other: Use) -> Use:
        names = [each.name for each in fields(self)]
        sums: dict[str, Any] = {name: getattr(self, name) + getattr(other, name) for name in names}
        return Use(**sums)

    @property
    def traffic_bytes(self) -> int:
        return self.received_bytes + self.sent_bytes


@dataclass(frozen=True)
class CounterReading:
    """The counters of a VM at one time; None: not read."""

    vm_id: str
    at: datetime
    paused: bool = False
    cpu_seconds: float | None = None
    received_bytes: int | None = None
    sent_bytes: int | None = None


def first_day(at: datetime, days: int = USUAL_DAYS) -> date:
    """Return the first of the last `days` days up to `at`."""
    return day_of(at) - (days - 1) * DAY


def day_of(at: datetime) -> date:
    """Return a time's day of UTC."""
    return at.astimezone(timezone.utc).date()


def midnight(day: date) -> datetime:
    """Return the time at which a day of UTC begins."""
    return datetime.combine(day, time(), timezone.utc)


def total(uses: Iterable[Use]) -> Use:
    return reduce(add, uses, Use())


def first_reading(vm: Vm, session: Session) -> CounterReading:
    """Return the counters of a VM at the start of its session, as far as they are known.

    A VM that was started for the session had used no CPU. Network counters are those of the slot,
    which had other VMs before.
    """
    made_for_it = vm.created_at >= session.created_at
    return CounterReading(vm.id, session.created_at, cpu_seconds=0.0 if made_for_it else None)


def complete(last: CounterReading | None, new: CounterReading) -> CounterReading:
    """Return the new reading, with counters of the last one where the new one has none."""
    if last is None:
        return new
    kept = {
        name: getattr(last, name)
        for name in ("cpu_seconds", "received_bytes", "sent_bytes")
        if getattr(new, name) is None
    }
    return replace(new, **kept)


def use_between(
    last: CounterReading, new: CounterReading, vm: Vm, session: Session
) -> Mapping[date, Use]:
    """Return the usage of a session between two readings, by days of UTC."""
    if new.at <= last.at or (session.ended_at is not None and session.ended_at <= last.at):
        return {}
    found = defaultdict(
        Use, {day: Use(vm_seconds=seconds) for day, seconds in _ran(last, new, vm, session)}
    )
    found[day_of(_end(new, session))] += Use(
        cpu_seconds=_grown(last.cpu_seconds, new.cpu_seconds),
        received_bytes=int(_grown(last.received_bytes, new.received_bytes)),
        sent_bytes=int(_grown(last.sent_bytes, new.sent_bytes)),
    )
    return {day: use for day, use in found.items() if use != Use()}


def _ran(
    last: CounterReading, new: CounterReading, vm: Vm, session: Session
) -> Iterator[tuple[date, float]]:
    """Yield the seconds in which the VM ran between the two readings, by days.

    A VM that was paused at the last reading and runs now counts from the next reading on, since the
    time at which it was resumed is not known.
    """
    if vm.started_at is None or (last.paused and vm.started_at <= last.at):
        return
    start = max(last.at, vm.started_at, session.created_at)
    end = min(_end(new, session), vm.paused_at or new.at)
    while start < end:
        until = min(midnight(day_of(start) + DAY), end)
        yield day_of(start), (until - start).total_seconds()
        start = until


def _end(new: CounterReading, session: Session) -> datetime:
    return min(new.at, session.ended_at or new.at)


def _grown(last: float | None, new: float | None) -> float:
    """Return the growth of a counter. A counter below its last value was reset."""
    if last is None or new is None:
        return 0
    return new - last if new >= last else new

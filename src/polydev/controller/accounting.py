"""Count the use of each user from counters of VMs, which only grow; pure.

A VM's counters are read now and then. What they have grown by since the reading before is the use
of the session that has the VM; the reading is kept with the sum, so that nothing counts twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from datetime import date, datetime, time, timedelta, timezone
from functools import reduce
from operator import add
from typing import Any

from polydev.controller.model import Session, Vm

DAY = timedelta(days=1)
# How far use is looked back on, unless somebody asks for other days; today included.
USUAL_DAYS = 30


@dataclass(frozen=True)
class Use:
    """The use of one user.

    vm_seconds      in which VMs of sessions ran; while they are paused they do not
    cpu_seconds     of the host's processors, by these VMs
    received_bytes, sent_bytes  by these VMs
    sessions        that were started
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
    """The counters of a VM at one time; None is what could not be read, or not yet."""

    vm_id: str
    at: datetime
    paused: bool = False
    cpu_seconds: float | None = None
    received_bytes: int | None = None
    sent_bytes: int | None = None


def first_day(at: datetime, days: int = USUAL_DAYS) -> date:
    """Return the first of the last `days`, of which the day of `at` is the last."""
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
    """Return what a VM's counters were when its session got it, as far as that is certain.

    A process that was started for the session had used no CPU. The counters of a network belong
    to its slot, which had other VMs before.
    """
    made_for_it = vm.created_at >= session.created_at
    return CounterReading(vm.id, session.created_at, cpu_seconds=0.0 if made_for_it else None)


def complete(last: CounterReading | None, new: CounterReading) -> CounterReading:
    """Return the new reading, with counters of the last one where they could not be read."""
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
    """Return what a session used of its VM between two readings, by days of UTC."""
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
    """Yield each day with the seconds in which the VM ran, between the two readings.

    A VM that was paused at the last reading and is awake counts from the next one on: nobody
    knows since when it ran.
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
    """Return by how much a counter has grown; one that is less than before began anew."""
    if last is None or new is None:
        return 0
    return new - last if new >= last else new

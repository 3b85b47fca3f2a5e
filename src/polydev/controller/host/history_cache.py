"""Cache of the last day's samples, for charts.

The first use reads the whole day from the database, later ones only what is new.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from polydev.controller.entities import now
from polydev.controller.host.history import Timed, without_vms
from polydev.controller.host.sample import Sample
from polydev.controller.settings import Sampling
from polydev.controller.store.host_samples import HostSamples, too_dense
from polydev.controller.store.session_start_times import SessionStart, SessionStarts

KEPT = timedelta(hours=24)
# A start gets its time before its transaction ends, so it may become visible late.
LATE = timedelta(seconds=60)


@dataclass(frozen=True)
class LastDay:
    """Samples of a day without their VMs, and starts of sessions, both oldest first."""

    samples: Sequence[Timed]
    starts: Sequence[SessionStart]


class HistoryCache:
    def __init__(
        self,
        samples: HostSamples,
        starts: SessionStarts,
        rules: Sampling,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._samples = samples
        self._starts = starts
        self._rules = rules
        self._clock = clock
        self._day = LastDay((), ())
        self._one_at_a_time = asyncio.Lock()

    async def day(self) -> LastDay:
        """Return the last 24 hours, as far as there are samples."""
        async with self._one_at_a_time:
            end = self._clock()
            oldest = end - KEPT
            samples = [each for each in self._day.samples if oldest <= each[0] < end]
            samples += await self._newer(samples[-1][0] if samples else None, oldest, end)
            self._day = LastDay(self._thinned(samples, end), await self._started(oldest, end))
            return self._day

    async def _newer(self, last: datetime | None, oldest: datetime, end: datetime) -> list[Timed]:
        begin = oldest if last is None else last + timedelta(microseconds=1)
        return [
            (at, without_vms(Sample(**figures)))
            async for portion in self._samples.portions(begin, end)
            for at, figures in portion
        ]

    async def _started(self, oldest: datetime, end: datetime) -> list[SessionStart]:
        known = self._day.starts
        begin = max(oldest, known[-1].ready_at - LATE) if known else oldest
        kept = [each for each in known if oldest < each.ready_at <= begin]
        return kept + await self._starts.between(begin, end)

    def _thinned(self, samples: list[Timed], end: datetime) -> list[Timed]:
        """Leave out the samples that the database thins out, too."""
        whole = end - timedelta(seconds=self._rules.whole_seconds)
        old = (at for at, _ in samples if at < whole)
        dense = set(too_dense(old, self._rules.thinned_every_seconds))
        return [each for each in samples if each[0] not in dense]

"""The host's figures of the last hours, as they were sampled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from polydev.controller.settings import Sampling
from polydev.controller.store.tables import samples
from polydev.controller.store.transactions import Database, uninterrupted

# Databases take only so many values in one statement.
MOST_VALUES = 500


@uninterrupted
class Samples:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, at: datetime, figures: Mapping[str, Any]) -> None:
        """Keep a sample, in place of one of the very same time."""
        async with self._database.writing() as connection:
            await connection.execute(sa.delete(samples).where(samples.c.at == at))
            await connection.execute(sa.insert(samples).values(at=at, figures=dict(figures)))

    async def between(
        self, start: datetime, end: datetime, points: int | None = None
    ) -> list[tuple[datetime, dict[str, Any]]]:
        """Samples from `start` until before `end`, oldest first.

        Where there are more than `points`, the time since the first of them is cut in as many
        pieces, and of each the last sample is taken. Only these are read whole.
        """
        async with self._database.reading() as connection:
            times = sa.select(samples.c.at).where(samples.c.at >= start, samples.c.at < end)
            found = list((await connection.execute(times.order_by(samples.c.at))).scalars())
            if points is not None and len(found) > points:
                found = last_of_each_piece(found, found[0], end, points)
            rows = [
                row
                for some in _portions(found)
                for row in await connection.execute(
                    sa.select(samples.c.at, samples.c.figures).where(samples.c.at.in_(some))
                )
            ]
        return [(row.at, row.figures) for row in sorted(rows, key=lambda row: row.at)]

    async def thin(self, rules: Sampling, at: datetime) -> int:
        """Remove what is too old at that time, or too dense for its age; how many that were."""
        oldest = at - timedelta(seconds=rules.keep_seconds)
        whole = at - timedelta(seconds=rules.whole_seconds)
        async with self._database.writing() as connection:
            done = await connection.execute(sa.delete(samples).where(samples.c.at < oldest))
            removed = done.rowcount
            times = sa.select(samples.c.at).where(samples.c.at < whole).order_by(samples.c.at)
            found = (await connection.execute(times)).scalars()
            for some in _portions(too_dense(found, rules.thinned_every_seconds)):
                await connection.execute(sa.delete(samples).where(samples.c.at.in_(some)))
                removed += len(some)
        return removed


def too_dense(times: Iterable[datetime], every_seconds: float) -> list[datetime]:
    """Of times in their order all but the first of each span; the same whenever it is asked."""
    kept: set[int] = set()
    dense = []
    for each in times:
        span = int(each.timestamp() // every_seconds)
        if span in kept:
            dense.append(each)
        kept.add(span)
    return dense


def last_of_each_piece(
    times: Iterable[datetime], start: datetime, end: datetime, pieces: int
) -> list[datetime]:
    """Of times in their order the last in each of the equal pieces of a span."""
    length = (end - start) / pieces
    return list({int((each - start) / length): each for each in times}.values())


def _portions(times: Sequence[datetime]) -> Iterator[Sequence[datetime]]:
    for begin in range(0, len(times), MOST_VALUES):
        yield times[begin : begin + MOST_VALUES]

"""The host's samples of the last hours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.settings import Sampling
from polydev.controller.store.tables import samples
from polydev.controller.store.transactions import Database, uninterrupted

# Databases limit the number of values in one statement.
MOST_VALUES = 500
# Small, since samples of a host with many VMs are large and are decoded in the event loop.
PORTION = 50


@uninterrupted
class HostSamples:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, at: datetime, figures: Mapping[str, Any]) -> None:
        """Store a sample, replacing one of the same time."""
        async with self._database.writing() as connection:
            await connection.execute(sa.delete(samples).where(samples.c.at == at))
            await connection.execute(sa.insert(samples).values(at=at, figures=dict(figures)))

    async def between(
        self, start: datetime, end: datetime, points: int | None = None
    ) -> list[tuple[datetime, dict[str, Any]]]:
        """Return the samples from `start` until before `end`, oldest first.

        If there are more than `points`, the time since the first one is divided into as many
        pieces, and the last sample of each piece is returned. Only these are read completely.
        """
        async with self._database.reading() as connection:
            found = await _times(connection, start, end)
            if points is not None and len(found) > points:
                found = last_of_each_piece(found, found[0], end, points)
            return [
                each
                for some in _portions(found, MOST_VALUES)
                for each in await _taken_at(connection, some)
            ]

    async def portions(
        self, start: datetime, end: datetime, size: int = PORTION
    ) -> AsyncIterator[list[tuple[datetime, dict[str, Any]]]]:
        """Yield the same samples, `size` at a time, to keep few of them in memory.

        Each portion is read in a transaction of its own, so samples that are thinned out meanwhile
        may be missing.
        """
        for some in _portions(await self.times(start, end), size):
            yield await self.taken_at(some)

    async def times(self, start: datetime, end: datetime) -> list[datetime]:
        """Return the times of samples from `start` until before `end`, oldest first."""
        async with self._database.reading() as connection:
            return await _times(connection, start, end)

    async def taken_at(self, times: Sequence[datetime]) -> list[tuple[datetime, dict[str, Any]]]:
        """Return the samples of these times, oldest first; at most MOST_VALUES."""
        async with self._database.reading() as connection:
            return await _taken_at(connection, times)

    async def thin(self, rules: Sampling, at: datetime) -> int:
        """Delete samples that are too old, or too dense for their age, and return how many."""
        oldest = at - timedelta(seconds=rules.keep_seconds)
        whole = at - timedelta(seconds=rules.whole_seconds)
        async with self._database.writing() as connection:
            done = await connection.execute(sa.delete(samples).where(samples.c.at < oldest))
            removed = done.rowcount
            times = sa.select(samples.c.at).where(samples.c.at < whole).order_by(samples.c.at)
            found = (await connection.execute(times)).scalars()
            for some in _portions(too_dense(found, rules.thinned_every_seconds), MOST_VALUES):
                await connection.execute(sa.delete(samples).where(samples.c.at.in_(some)))
                removed += len(some)
        return removed


def too_dense(times: Iterable[datetime], every_seconds: float) -> list[datetime]:
    """Return all but the first time of each span; spans are fixed, so the result is stable."""
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
    """Return the last time in each of the equal pieces of a span."""
    length = (end - start) / pieces
    return list({int((each - start) / length): each for each in times}.values())


async def _times(connection: AsyncConnection, start: datetime, end: datetime) -> list[datetime]:
    asked = sa.select(samples.c.at).where(samples.c.at >= start, samples.c.at < end)
    return list((await connection.execute(asked.order_by(samples.c.at))).scalars())


async def _taken_at(
    connection: AsyncConnection, times: Sequence[datetime]
) -> list[tuple[datetime, dict[str, Any]]]:
    asked = sa.select(samples.c.at, samples.c.figures).where(samples.c.at.in_(times))
    found = await connection.execute(asked.order_by(samples.c.at))
    return [(row.at, row.figures) for row in found]


def _portions(times: Sequence[datetime], size: int) -> Iterator[Sequence[datetime]]:
    for begin in range(0, len(times), size):
        yield times[begin : begin + size]

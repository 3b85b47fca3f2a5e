"""Export of the host's history as CSV or JSON, a few samples at a time."""

from __future__ import annotations

import csv
import json
import re
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from io import StringIO
from typing import Any, Literal

from polydev.controller.host.history import Row, Timed, columns_of, rows
from polydev.controller.host.sample import Sample
from polydev.controller.store.host_samples import HostSamples
from polydev.controller.store.session_start_times import SessionStart, SessionStarts

Format = Literal["csv", "json"]
MEDIA_TYPES: Mapping[Format, str] = {
    "csv": "text/csv; charset=utf-8",
    "json": "application/json",
}
# A spreadsheet reads a cell that begins with one of these as a formula, some also in full width or
# after blanks.
FORMULA = re.compile("[\\s\ufeff\u200b]*[=+\\-@\uff1d\uff0b\uff0d\uff20]|[\\t\\r\\n]")


@dataclass(frozen=True)
class HistoryExport:
    """The samples of a database from `start` until before `end`, as text."""

    samples: HostSamples
    starts: SessionStarts
    start: datetime
    end: datetime

    async def as_csv(self) -> AsyncIterator[str]:
        """Yield a line with the names of columns, then a line for each sample."""
        columns = await self._columns()
        yield csv_line(columns)
        async for portion in self._rows():
            yield "".join(csv_line([row.get(name) for name in columns]) for row in portion)

    async def as_json(self) -> AsyncIterator[str]:
        """Yield a list with an object for each sample, all with the same names."""
        columns = await self._columns()
        separator = "[\n"
        async for portion in self._rows():
            for row in portion:
                yield separator + json.dumps({name: row.get(name) for name in columns})
                separator = ",\n"
        yield "[]\n" if separator == "[\n" else "\n]\n"

    async def _columns(self) -> list[str]:
        """Read all samples once: mounts and interfaces change, and the first line names all."""
        found: dict[str, None] = dict.fromkeys(columns_of(rows([(self.start, Sample())], ())))
        async for portion in self._rows():
            found |= dict.fromkeys(columns_of(portion))
        return columns_of([dict(found)])

    async def _rows(self) -> AsyncIterator[list[Row]]:
        starts = await self.starts.between(self.start, self.end)
        before: Timed | None = None
        async for portion in self.samples.portions(self.start, self.end):
            samples = [(at, Sample(**figures)) for at, figures in portion]
            if not samples:
                continue
            own = _until(samples[-1][0], starts, before)
            yield rows(samples, own, before)
            before = samples[-1]


def _until(
    end: datetime, starts: Sequence[SessionStart], before: Timed | None
) -> list[SessionStart]:
    begin = before[0] if before else None
    return [
        each for each in starts if each.ready_at <= end and (begin is None or each.ready_at > begin)
    ]


def csv_line(values: Sequence[Any]) -> str:
    """Return a line of CSV in which a spreadsheet finds no formula."""
    line = StringIO()
    csv.writer(line).writerow([_cell(each) for each in values])
    return line.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and FORMULA.match(value):
        return "'" + value
    return value


def file_name(end: datetime, form: Format) -> str:
    """Return a file name with this host's name and the time."""
    host = re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname())
    return f"polydev-history-{host}-{end:%Y%m%dT%H%M%SZ}.{form}"

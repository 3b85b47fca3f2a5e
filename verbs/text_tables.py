"""Tables and short forms of values for text output."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from polydev.cli import stdout

# In a file or a pipe nothing is cut or wrapped.
WIDE = 1000


def table_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return rows under their columns, as wide as the terminal; None becomes an empty cell."""
    table = Table(box=None, pad_edge=False, header_style="")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    width = stdout.width if stdout.is_terminal else WIDE
    # No markup: texts of hosts may contain brackets.
    console = Console(file=io.StringIO(), width=width, color_system=None, markup=False)
    with console.capture() as shown:
        console.print(table)
    return "\n".join(line.rstrip() for line in shown.get().splitlines())


def more_text(is_cut: bool, limit: int, *, all_of_them: bool) -> str:
    """Return how to see what a list leaves out, as lines after it."""
    hints = [f"these are the newest {limit}: more with --limit"] if is_cut else []
    if not all_of_them:
        hints.append("ended ones: --all")
    return "".join(f"\n({hint})" for hint in hints)


def newest_text(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    limit: int,
    if_none: str,
    *,
    all_of_them: bool,
) -> str:
    """Return a table of so many of the newest, given one more, which tells that there are more."""
    found = list(rows)
    text = table_text(columns, found[:limit]) if found else if_none
    return text + more_text(len(found) > limit, limit, all_of_them=all_of_them)


def minute(time: str | None) -> str:
    """Return a time of an answer as `YYYY-MM-DD HH:MM`."""
    return (time or "")[:16].replace("T", " ")


def short(text: str | None) -> str:
    """Return the first 8 characters of an id."""
    return (text or "")[:8]

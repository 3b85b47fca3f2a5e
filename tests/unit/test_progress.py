"""Progress where nobody looks at bars."""

from __future__ import annotations

import io

from rich.console import Console

from polydev.progress import Steps


def test_a_line_of_a_log_stays_whole() -> None:
    log = io.StringIO()
    note = "database: " + "PostgreSQL instead of SQLite " * 9 + "[copied]"
    Steps(Console(file=log, width=80)).note(note)
    assert log.getvalue() == f"{note}\n"

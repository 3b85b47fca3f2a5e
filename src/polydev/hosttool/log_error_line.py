"""Find the line of a log that says why a program failed."""

from __future__ import annotations

import re

# As the controller's command line, its log in JSON, its log for a console, and Python write it.
ERROR_LINE = re.compile(
    r"""^error: |"level": ?"(error|critical)"|\[(error|critical) *\]|^\w[\w.]*Error\b"""
)


def failing_line(log: str) -> str:
    """The first line that tells of an error; else the last one."""
    lines = log.splitlines()
    return next(filter(ERROR_LINE.search, lines), lines[-1] if lines else "")

"""Progress on a terminal and in a log."""

from __future__ import annotations

import io

from rich.console import Console

from polydev.progress import Steps, _Bar


def test_a_line_of_a_log_stays_whole() -> None:
    log = io.StringIO()
    note = "database: " + "PostgreSQL instead of SQLite " * 9 + "[copied]"
    Steps(Console(file=log, width=80)).note(note)
    assert log.getvalue() == f"{note}\n"


def test_a_step_that_tells_no_share_has_a_bar_without_an_end() -> None:
    steps = Steps(Console(file=io.StringIO(), width=80, force_terminal=True))
    with steps.step("build") as step:
        assert isinstance(step, _Bar)
        (task,) = step.bars.tasks
        step.say("reads [1]")
        assert (task.total, task.fields["detail"]) == (None, "reads (1)")
        step.say("half", 0.5)
        assert (task.total, task.completed) == (1.0, 0.5)

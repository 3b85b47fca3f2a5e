"""Progress on a terminal and in a log."""

from __future__ import annotations

import io

from rich.console import Console

from polydev.progress import Steps, _Bar


def test_note_in_a_log_is_not_wrapped() -> None:
    log = io.StringIO()
    note = "database: " + "PostgreSQL instead of SQLite " * 9 + "[copied]"
    Steps(Console(file=log, width=80)).note(note)
    assert log.getvalue() == f"{note}\n"


def test_step_without_a_fraction_has_an_indeterminate_bar() -> None:
    steps = Steps(Console(file=io.StringIO(), width=80, force_terminal=True))
    with steps.step("build") as step:
        assert isinstance(step, _Bar)
        (task,) = step.bars.tasks
        step.say("reads [1]")
        assert (task.total, task.fields["detail"]) == (None, "reads (1)")
        step.say("half", 0.5)
        assert (task.total, task.completed) == (1.0, 0.5)

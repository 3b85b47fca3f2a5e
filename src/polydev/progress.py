"""Progress of long work, on a terminal or in a log; always on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class Step(Protocol):
    """One running piece of work."""

    def say(self, detail: str, fraction: float | None = None) -> None:
        """Show what is being done now and, if known, how much is done (0 to 1)."""


class Steps:
    """Shows steps, several at once: bars on a terminal, else a line at start and end."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._bars: Progress | None = None
        self._open = 0

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        started = time.monotonic()
        step = self._bar(name) if self.console.is_terminal else _Lines(self.console, name)
        try:
            yield step
        except BaseException:
            self._end(step)
            self.console.print(f"[red]✗[/] {name}", highlight=False)
            raise
        self._end(step)
        seconds = time.monotonic() - started
        self.console.print(f"[green]✓[/] {name} [dim]{seconds:.1f} s[/]", highlight=False)

    def note(self, text: str) -> None:
        # Lines wrap on a terminal only, where the bars below need their number.
        whole = not self.console.is_terminal
        self.console.print(text, highlight=False, markup=False, soft_wrap=whole)

    def _bar(self, name: str) -> _Bar:
        if self._bars is None:
            self._bars = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
                TextColumn("[dim]{task.fields[detail]}", markup=True),
                console=self.console,
                transient=True,
            )
            self._bars.start()
        self._open += 1
        return _Bar(self._bars, self._bars.add_task(name, total=None, detail=""))

    def _end(self, step: Step) -> None:
        if isinstance(step, _Bar) and self._bars is not None:
            self._bars.remove_task(step.task)
            self._open -= 1
            if self._open == 0:
                self._bars.stop()
                self._bars = None


class _Bar:
    def __init__(self, bars: Progress, task: TaskID) -> None:
        self.bars = bars
        self.task = task

    def say(self, detail: str, fraction: float | None = None) -> None:
        room = max(20, self.bars.console.width - 60)
        plain = detail.replace("[", "(").replace("]", ")")[:room]
        total = None if fraction is None else 1.0
        self.bars.update(self.task, detail=plain, total=total, completed=fraction or 0.0)


class _Lines:
    """Progress in a log: one line when a step starts."""

    def __init__(self, console: Console, name: str) -> None:
        console.print(f"… {name}", highlight=False, markup=False)

    def say(self, detail: str, fraction: float | None = None) -> None:
        pass

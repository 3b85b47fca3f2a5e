"""The slowest tests and fixtures of a run, printed at its end.

A fixture's time is its own set-up only: what it requests is measured for itself. Under pytest-xdist
the workers send their figures with their reports.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from operator import itemgetter

import pytest

SHOWN = 25
FIXTURE = "fixture"


class Slowest:
    """Durations in seconds; a worker fills `set_up`, the process that reports fills `found`."""

    def __init__(self) -> None:
        self.set_up: list[tuple[str, float]] = []
        self.found: list[tuple[str, float]] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[object]
    ) -> Generator[None, object, object]:
        started = time.perf_counter()
        try:
            return (yield)
        finally:
            self.set_up.append((fixturedef.argname, time.perf_counter() - started))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self,
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.when == "setup":
            report.user_properties += [
                (f"{FIXTURE} {name}", seconds) for name, seconds in self.set_up
            ]
            self.set_up.clear()
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "setup":
            for name, seconds in report.user_properties:
                if name.startswith(FIXTURE) and isinstance(seconds, float):
                    self.found.append((f"{name}, for {report.nodeid}", seconds))
        else:
            what = "teardown of " if report.when == "teardown" else ""
            self.found.append((f"{what}{report.nodeid}", report.duration))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if terminalreporter.verbosity < 0 or len(self.found) <= SHOWN:
            return
        terminalreporter.section(f"slowest {SHOWN} tests and fixtures")
        for what, seconds in sorted(self.found, key=itemgetter(1), reverse=True)[:SHOWN]:
            terminalreporter.write_line(f"{seconds:8.1f} s  {what}")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Slowest(), "slowest tests and fixtures")

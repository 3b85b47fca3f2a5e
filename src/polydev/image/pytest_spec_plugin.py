"""The pytest plugin that specs of images run with: access to the image, and a report in JSON.

    pytest -p polydev.image.pytest_spec_plugin tests/spec/image --hosts=console:///path/console.sock
        --guest-ports=127.0.0.1:18080,15901,16080 --spec-report=report.json

`--hosts=chroot:///path` runs the specs of an image at rest instead. The marker of a spec says what
it needs: `offline` (a tree), `booted` (the test console), `outside` (the ports).

The message of a failed spec is what an operator reads, so each assertion in a spec carries one. It
says what is wrong with the image. An error that no spec expects is reported with its kind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
import testinfra.backend
from testinfra.backend.base import BaseBackend, CommandResult

from polydev.image.guest_shell import GuestShell
from polydev.vm.config import Ports

SHELL_TIMEOUT_SECONDS = 60.0
# testinfra puts the host into each test's name. There is only one host here, so it is removed.
_HOST_PARAMETER = re.compile(r"(?:chroot|console)://[^\]]*/[\w.]+-?")
# By name, since importing the libraries that raise them would slow down every phase.
TIMEOUTS = {"TimeoutError", "Timeout", "VmTimeout"}
TIMED_OUT = ("timed_out", True)
PHASES = ("offline", "booted", "outside")
MOST_CHARACTERS = 600


class ConsoleBackend(BaseBackend):  # type: ignore[misc]  # testinfra ships no types
    """The testinfra backend of a VM's test console: --hosts=console:///path/console.sock"""

    NAME = "console"

    def __init__(self, name: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(name, *args, **kwargs)
        self.path = Path(name)
        self._console: GuestShell | None = None

    def run(self, command: str, *args: str, **kwargs: Any) -> CommandResult:
        if self._console is None:
            self._console = GuestShell(self.path, SHELL_TIMEOUT_SECONDS)
            self._console.open_shell(SHELL_TIMEOUT_SECONDS)
        line = self.get_command(command, *args)
        answer = self._console.run(line)
        return self.result(answer.status, self.encode(line), answer.stdout, answer.stderr)


testinfra.backend.BACKENDS["console"] = f"{__name__}.ConsoleBackend"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("polydev")
    group.addoption("--guest-ports", help="HOST:AGENT,VNC,NOVNC of the VM under test")
    group.addoption("--spec-report", help="write the outcome of each spec to this file (JSON)")


def pytest_configure(config: pytest.Config) -> None:
    for phase in PHASES:
        config.addinivalue_line("markers", f"{phase}: needs {phase} access to the image")
    # testinfra uses the host part of a URL only; these backends need its path.
    url = urlparse(config.getoption("hosts", None) or "")
    if url.scheme in ("console", "chroot") and not url.netloc:
        config.option.hosts, config.option.connection = url.path, url.scheme
    config.pluginmanager.register(_Report(config.getoption("--spec-report")), "polydev-spec-report")


@pytest.fixture(scope="session")
def guest(request: pytest.FixtureRequest) -> Ports:
    """The addresses of the VM's ports from outside."""
    given = request.config.getoption("--guest-ports")
    if not given:
        pytest.skip("needs --guest-ports")
    host, _, numbers = given.rpartition(":")
    agent, vnc, novnc = (int(number) for number in numbers.split(","))
    return Ports(agent, vnc, novnc, host or "127.0.0.1")


class _Report:
    """Collects the outcomes of specs and writes them to the file that golden.verify reads."""

    def __init__(self, file: str | None) -> None:
        self.file = file
        self.results: list[dict[str, Any]] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        error = call.excinfo.type if call.excinfo else object
        if any(kind.__name__ in TIMEOUTS for kind in error.__mro__):
            report.user_properties.append(TIMED_OUT)
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        self.results.append(
            {
                "name": _spec_name(report.nodeid),
                "outcome": report.outcome,
                "seconds": round(report.duration, 3),
                "message": _reason(report),
                "timed_out": TIMED_OUT in report.user_properties,
            }
        )

    def pytest_sessionfinish(self) -> None:
        if self.file:
            Path(self.file).write_text(json.dumps(self.results))


def _spec_name(node: str) -> str:
    return _HOST_PARAMETER.sub("", node.split("::", 1)[-1]).removesuffix("[]")


def _reason(report: pytest.TestReport) -> str:
    if report.outcome == "passed":
        return ""
    if report.outcome == "skipped":
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        return f"skipped: {str(reason).removeprefix('Skipped: ')}"
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(crash.message if crash else report.longrepr)
    # pytest's own account of the comparison follows on lines of its own.
    said = " ".join(text.split("\n\n")[0].split("\n +")[0].split("\nassert ")[0].split())
    kind, colon, message = said.partition(": ")
    if kind in ("AssertionError", "TimeoutError") and colon:
        said = message
    elif said.startswith("assert "):
        said = f"the spec gives no reason, only: {said}"
    else:
        said = f"the spec could not be checked: {said}"
    return said[:MOST_CHARACTERS]

"""pyinfra's process from outside: the meaning of its lines, and a process that says nothing."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest

from polydev.deployment import pyinfra_process
from polydev.deployment.connection import HostRefused, Unreachable, tool_error
from polydev.deployment.pyinfra_process import (
    Operation,
    Plan,
    PlannedDeployment,
    Project,
    describe,
    planned,
)
from polydev.errors import ConfigError, DeployError, LockHeld

PROJECT = Project(Path("/checkout"), Path("/checkout/inventory/lab.py"))


class Told:
    """A process whose output is already complete."""

    def __init__(self, *events: object, stderr: str = "") -> None:
        lines = [each if isinstance(each, str) else json.dumps(each) for each in events]
        self.stdout = io.BytesIO("".join(f"{line}\n" for line in lines).encode())
        self.stderr = stderr
        self.sent: list[str] = []
        self.is_group_ended = False
        self.has_ended = False
        self.argv: list[str] = []

    def send(self, line: str) -> None:
        self.sent.append(line)

    def lines(self) -> Iterator[bytes]:
        yield from self.stdout

    def last_words(self) -> str:
        return self.stderr

    def end_group(self) -> None:
        self.is_group_ended = True


def plan_of(*names: str) -> Plan:
    return Plan(tuple(Operation(name, True, ()) for name in names))


def applied(
    process: Any, *names: str
) -> tuple[PlannedDeployment, io.StringIO, list[tuple[str, Any]]]:
    log = io.StringIO()
    log.name = "logs/x.log"
    return PlannedDeployment(process, plan_of(*names), log), log, []


def event(event: str, **fields: object) -> dict[str, object]:
    return {"event": event, **fields}


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make the next started process this one."""

    def begin(process: Told) -> Told:
        @contextmanager
        def run(argv: list[str], root: Path) -> Iterator[Told]:
            process.argv = argv
            yield process
            process.has_ended = True

        monkeypatch.setattr(pyinfra_process, "_running", run)
        return process

    return begin


class TestGo:
    def test_progress_is_reported_and_every_event_logged(self) -> None:
        events = [
            event("start", name="a"),
            event("log", text="x"),
            event("end", name="a", ok=True),
            event("start", name="b"),
            event("end", name="b", ok=True),
            event("done", changed=2),
        ]
        process = Told(*events)
        change, log, said = applied(process, "a", "b", "c", "d")
        assert change.go(lambda text, fraction: said.append((text, fraction))) == 2
        assert process.sent == ["go"]
        assert said == [("a", 0.0), ("b", 0.25)]
        assert change.done == ["a", "b"]
        assert [json.loads(line) for line in log.getvalue().splitlines()] == events

    def test_event_is_written_to_the_log_before_it_is_shown(self, tmp_path: Path) -> None:
        """The log names the operation even if the operator's process is killed during it."""
        started, file, seen = event("start", name="a"), tmp_path / "x.log", []
        process: Any = Told(started, event("done", changed=0))
        with file.open("w") as log:
            change = PlannedDeployment(process, plan_of("a"), log)
            change.go(lambda *_: seen.append(json.loads(file.read_text())))
        assert seen == [started]

    def test_failed_operation_raises_its_reason(self) -> None:
        process = Told(
            event("end", name="a", ok=False),
            event("error", error="deploy", message="a: no room", hint="make some"),
            event("done", changed=1),
        )
        change, log, said = applied(process, "a")
        with pytest.raises(DeployError, match="a: no room") as failure:
            change.go(lambda text, fraction: said.append((text, fraction)))
        assert failure.value.hint == "make some"
        assert said == []
        assert len(log.getvalue().splitlines()) == 2

    def test_process_group_is_ended_after_success_or_failure(self) -> None:
        for process in (Told(event("done", changed=0)), Told(event("error", message="no")), Told()):
            change, _, _ = applied(process)
            with suppress(DeployError):
                change.go(lambda text, fraction: None)
            assert process.is_group_ended

    def test_process_that_ends_without_done_event_is_a_failure(self) -> None:
        change, _, _ = applied(Told(event("start", name="a")), "a")
        with pytest.raises(DeployError, match="ended without"):
            change.go(lambda text, fraction: None)

    def test_line_that_is_not_an_event_is_logged_and_skipped(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)
        change, _, _ = applied(Told("Traceback: x", event("done", changed=0)))
        assert change.go(lambda text, fraction: None) == 0
        assert "Traceback: x" in caplog.text

    @pytest.mark.parametrize(
        ("code", "kind"),
        [
            ("config", ConfigError),
            ("unreachable", Unreachable),
            ("deploy", DeployError),
            ("command", DeployError),
        ],
    )
    def test_error_event_raises_the_class_of_its_code(
        self, code: str, kind: type[Exception]
    ) -> None:
        change, _, _ = applied(Told(event("error", error=code, message="no")))
        with pytest.raises(kind) as failure:
            change.go(lambda text, fraction: None)
        assert type(failure.value) is kind


class TestPlanned:
    PLAN: ClassVar[dict[str, object]] = event(
        "plan",
        changes=1,
        operations=[
            {"host": "x", "name": "a", "changes": True, "diff": ["+ a"]},
            {"host": "x", "name": "b", "changes": False, "diff": []},
        ],
    )

    def test_plan_lists_operations_and_passes_options_to_pyinfra(self, running: Any) -> None:
        process = running(Told(event("log", text="x"), self.PLAN))
        log = io.StringIO()
        with planned(PROJECT, "x", {"slots": 3}, log, plan_only=True) as change:
            assert [each.name for each in change.plan.operations] == ["a", "b"]
            assert change.plan.changing == [Operation("a", True, ("+ a",))]
            assert not process.has_ended
        assert process.has_ended
        assert json.loads(log.getvalue()) == self.PLAN
        words = process.argv
        assert words[:4] == [sys.executable, "-m", "polydev.host_setup", "apply"]
        assert words[words.index("--data") + 1] == '{"slots": 3}'
        assert words[words.index("--host") + 1] == "x"
        assert words[-1] == "--plan"

    def test_apply_runs_pyinfra_without_plan_option(self, running: Any) -> None:
        process = running(Told(self.PLAN))
        with planned(PROJECT, "x", {}, io.StringIO(), plan_only=False):
            assert "--plan" not in process.argv

    def test_process_without_an_answer_raises_its_last_stderr_lines(self, running: Any) -> None:
        running(Told(stderr="\n".join(f"line {number}" for number in range(9))))
        with (
            pytest.raises(DeployError, match=r"without an answer\W+line 4(.|\n)*line 8$"),
            planned(PROJECT, "x", {}, io.StringIO(), plan_only=True),
        ):
            pass


NOISY = """
import json, sys
say = lambda **fields: print(json.dumps(fields), flush=True)
warn = lambda: print("x" * 1_000_000, file=sys.stderr, flush=True)
warn(); say(event="plan", changes=1, operations=[{"name": "a", "changes": True, "diff": []}])
sys.stdin.readline()
warn(); say(event="start", name="a"); warn(); say(event="end", name="a")
warn(); say(event="done", changed=1)
"""


def test_long_stderr_does_not_block_the_deployment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A real process writes far more to its standard error than a pipe holds."""
    monkeypatch.setattr(Project, "argv", lambda *_: [sys.executable, "-c", NOISY])
    project = Project(tmp_path, tmp_path)
    with planned(project, "x", {}, io.StringIO(), plan_only=False) as change:
        assert change.go(lambda text, fraction: None) == 1
    assert change.done == ["a"]


class TestDescribe:
    HOST: ClassVar[dict[str, Any]] = {
        "name": "browsers",
        "connection": {"ssh_hostname": "198.51.100.2", "ssh_user": "deploy", "ssh_port": "2222"},
        "scope": {"paths": ["/etc"]},
        "deadmanSeconds": 90,
        "controller": "127.0.0.1:4000",
    }

    def test_describe_returns_each_host(self, running: Any) -> None:
        process = running(Told(event("hosts", hosts=[self.HOST])))
        (found,) = describe(PROJECT)
        assert (found.name, found.deadman_seconds) == ("browsers", 90)
        assert found.controller == "127.0.0.1:4000"
        assert found.scope == {"paths": ["/etc"]}
        assert (found.target.destination, found.target.port) == ("deploy@198.51.100.2", 2222)
        assert "--host" not in process.argv

    def test_inventory_without_hosts_is_refused(self, running: Any) -> None:
        running(Told(event("hosts", hosts=[])))
        with pytest.raises(ConfigError, match="has no hosts") as failure:
            describe(PROJECT)
        assert "lab.up" in str(failure.value.hint)

    def test_inventory_error_is_raised_as_config_error(self, running: Any) -> None:
        running(Told(event("error", error="config", message="slots: no", hint="h")))
        with pytest.raises(ConfigError, match="slots: no"):
            describe(PROJECT)


class TestToolError:
    def test_json_error_keeps_message_and_hint_with_the_host_name(self) -> None:
        said = json.dumps({"error": "backup-damaged", "message": "no", "hint": "other"})
        error = tool_error("browsers", "polydev-host restore", f"first\n{said}\n", "noise")
        assert type(error) is HostRefused
        assert (error.message, error.hint) == ("browsers: no", "other")

    def test_lock_held_error_becomes_lock_held(self) -> None:
        said = json.dumps({"error": "lock-held", "message": "ada has it", "hint": "./inv unlock"})
        assert type(tool_error("browsers", "lock", said, "")) is LockHeld

    @pytest.mark.parametrize(
        ("stdout", "stderr", "words"),
        [
            ("", "sh: not found", "sh: not found"),
            ("out", "", "out"),
            ("", "", "no output"),
            ("[1]", "", r"\[1\]"),
            ('{"error": "x"}', "why", "why"),
            ("{broken", "why", "why"),
        ],
    )
    def test_output_that_is_not_json_is_quoted_in_the_error(
        self, stdout: str, stderr: str, words: str
    ) -> None:
        error = tool_error("browsers", "mkdir -p /x", stdout, stderr)
        assert type(error) is DeployError
        with pytest.raises(DeployError, match=f"browsers: mkdir failed: {words}"):
            raise error

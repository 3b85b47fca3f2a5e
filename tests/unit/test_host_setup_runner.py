"""deploy.py through pyinfra's API, on hosts of its fake connector: plan, deployment, events."""

from __future__ import annotations

import importlib
import io
import json
import logging
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api.state import State
from pyinfra.connectors.util import (
    CommandOutput,
    OutputLine,
    execute_command_with_sudo_retry,
    make_unix_command,
)
from pyinfra.context import ctx_state

from polydev.errors import ConfigError, DeployError
from polydev.host_setup import __main__ as process
from polydev.host_setup.inventory_file import read_inventory
from polydev.host_setup.pyinfra_operations import text_file
from tests.unit.fake_host import fake_host

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = """
from polydev.host_setup.pyinfra_operations import sysctl_value

sysctl_value(name="forwarding", key="net.ipv4.ip_forward", value="1")
sysctl_value(name="backlog", key="net.core.somaxconn", value="4096")
"""

Events = list[dict[str, Any]]


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, without the patching of threads by pyinfra's command line."""
    logger = logging.getLogger("pyinfra")
    before = logger.handlers, logger.level, logger.propagate
    with monkeypatch.context() as patch:
        patch.setattr("gevent.monkey.patch_all", lambda: None)
        module = importlib.import_module("polydev.host_setup.pyinfra_runner")
    yield module
    logger.handlers, logger.level, logger.propagate = before


@pytest.fixture
def events() -> Events:
    return []


Make = Callable[..., Any]


@pytest.fixture
def make(runner: Any, events: Events, tmp_path: Path) -> Make:
    def made(*answers: dict[str, object]) -> Any:
        hosts = [
            (f"@fake/{number}", {"fake_responses": each, "fake_delay": 0, "fake_delay_jitter": 0})
            for number, each in enumerate(answers)
        ]
        inventory, deploy = tmp_path / "inventory.py", tmp_path / "deploy.py"
        inventory.write_text(f"browser_hosts = {hosts!r}\n")
        deploy.write_text(DEPLOY)
        return runner.Runner(
            inventory, deploy, lambda event, **fields: events.append({"event": event, **fields})
        )

    return made


@pytest.fixture
def told_to(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda word: monkeypatch.setattr(sys, "stdin", io.StringIO(word))


def test_ssh_waits_a_minute_for_the_greeting_of_a_busy_host(runner: Any, tmp_path: Path) -> None:
    """Unless the inventory says otherwise."""
    file = tmp_path / "inventory.py"
    own = {"ssh_paramiko_connect_kwargs": {"banner_timeout": 5}}
    file.write_text(f"browser_hosts = ['slow.example', ('quick.example', {own!r})]\n")
    inventory = runner.Runner(file, tmp_path / "deploy.py", print)._load({})
    given = {host.name: host.data.ssh_paramiko_connect_kwargs for host in inventory}
    assert given == {
        "slow.example": {"banner_timeout": 60, "auth_timeout": 60},
        "quick.example": {"banner_timeout": 5},
    }


def of(events: Events, name: str) -> Events:
    return [each for each in events if each["event"] == name]


RIGHT = {"somaxconn": "4096", "ip_forward": "1"}
WRONG = {"somaxconn": "4096", "sysctl -n": "0"}
REFUSING = {
    "somaxconn": "4096",
    "sysctl -n": "0",
    "sysctl -q": {"success": False, "stderr": ["sysctl: permission denied", "really"]},
}


class TestPlan:
    def test_plan_lists_each_operation_with_its_difference(
        self, make: Make, events: Events
    ) -> None:
        assert make(WRONG).apply(None, {}, plan_only=True) == 0
        (plan,) = of(events, "plan")
        assert plan["changes"] == 1
        assert [(each["name"], each["changes"]) for each in plan["operations"]] == [
            ("forwarding", True),
            ("backlog", False),
        ]
        assert [line.strip() for line in plan["operations"][0]["diff"]] == [
            "- net.ipv4.ip_forward = 0",
            "+ net.ipv4.ip_forward = 1",
        ]
        assert plan["operations"][1]["diff"] == []

    def test_plan_covers_the_named_host_only(self, make: Make, events: Events) -> None:
        make(RIGHT, WRONG).apply("@fake/1", {}, plan_only=True)
        (plan,) = of(events, "plan")
        assert {each["host"] for each in plan["operations"]} == {"@fake/1"}
        assert "ip_forward = 0" in "".join(plan["operations"][0]["diff"])

    def test_facts_are_read_in_the_c_locale(
        self, runner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
        inventory, deploy = tmp_path / "inventory.py", tmp_path / "deploy.py"
        inventory.write_text("browser_hosts = ['@local']\n")
        told = tmp_path / "told"
        deploy.write_text(
            "from pyinfra.context import host\n"
            "from pyinfra.facts.server import Command\n"
            "said = host.get_fact(Command, command='echo $LC_ALL', _sudo=False)\n"
            f"open({str(told)!r}, 'w').write(said)\n"
        )
        runner.Runner(inventory, deploy, lambda event, **fields: None).apply(
            None, {}, plan_only=True
        )
        assert told.read_text() == "C.UTF-8"

    def test_plan_runs_no_operation(
        self, make: Make, events: Events, told_to: Callable[[str], None]
    ) -> None:
        told_to("go\n")
        make(WRONG).apply(None, {}, plan_only=True)
        assert not of(events, "start") + of(events, "done")

    def test_plan_contains_warnings(self, make: Make, events: Events, tmp_path: Path) -> None:
        made = make(RIGHT)
        with (tmp_path / "deploy.py").open("a") as deploy:
            deploy.write(
                "from polydev.host_setup.pyinfra_types import warn\nwarn('tokens in plain text')\n"
            )
        made.apply(None, {}, plan_only=True)
        (plan,) = of(events, "plan")
        assert plan["warnings"] == ["tokens in plain text"]
        assert plan["changes"] == 0

    def test_unknown_host_is_refused(self, make: Make) -> None:
        with pytest.raises(ConfigError, match="has no host elsewhere"):
            make(RIGHT).apply("elsewhere", {}, plan_only=True)


class TestApply:
    def test_apply_reports_start_and_end_of_each_operation(
        self, make: Make, events: Events, told_to: Callable[[str], None]
    ) -> None:
        told_to("go\n")
        assert make(WRONG).apply("@fake/0", {}, plan_only=False) == 0
        said = [(each["event"], each.get("name"), each.get("ok")) for each in events]
        assert [each for each in said if each[0] in ("plan", "start", "end", "done")] == [
            ("plan", None, None),
            ("start", "forwarding", None),
            ("end", "forwarding", True),
            ("start", "backlog", None),
            ("end", "backlog", True),
            ("done", None, None),
        ]
        assert events[-1] == {"event": "done", "changed": 1}

    @pytest.mark.parametrize("deployment_id", [None, "20250131_120000-abcd"])
    def test_apply_puts_commands_in_the_slice_of_the_deployment(
        self,
        deployment_id: str | None,
        make: Make,
        events: Events,
        runner: Any,
        told_to: Callable[[str], None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        put: list[object] = []

        def note(_: object, deployment_id: str) -> None:
            assert not of(events, "start"), "before the first of them runs"
            put.append(deployment_id)

        monkeypatch.setattr(runner, "_put_in_slice", note)
        told_to("go\n")
        make(WRONG).apply(None, {"deployment_id": deployment_id}, plan_only=False)
        assert put == ([deployment_id] if deployment_id else [])
        assert of(events, "done")

    @pytest.mark.parametrize("word", ["", "stop\n", "g"])
    def test_apply_starts_only_after_go_on_stdin(
        self, make: Make, events: Events, told_to: Callable[[str], None], word: str
    ) -> None:
        told_to(word)
        assert make(WRONG).apply(None, {}, plan_only=False) == 0
        assert not of(events, "start")

    def test_apply_without_changes_does_not_read_stdin(
        self, make: Make, events: Events, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stdin", None)
        make(RIGHT).apply(None, {}, plan_only=False)
        assert of(events, "plan")[0]["changes"] == 0

    def test_failure_names_the_operation_and_its_output(
        self, make: Make, events: Events, told_to: Callable[[str], None]
    ) -> None:
        told_to("go\n")
        with pytest.raises(DeployError) as failure:
            make(REFUSING).apply(None, {}, plan_only=False)
        assert "forwarding: " in failure.value.message
        assert "sysctl: permission denied\nreally" in failure.value.message
        assert ("forwarding", False) in [(e["name"], e["ok"]) for e in of(events, "end")]
        assert "backlog" not in [each["name"] for each in of(events, "start")]
        assert not of(events, "done")

    def test_pyinfra_output_becomes_log_events_without_colours(
        self, make: Make, events: Events, told_to: Callable[[str], None]
    ) -> None:
        told_to("go\n")
        make(WRONG).apply(None, {}, plan_only=False)
        texts = [each["text"] for each in of(events, "log")]
        assert any("Starting operation: forwarding" in text for text in texts)
        assert not any("\x1b" in text for text in texts)


class TestFailureReason:
    @pytest.fixture
    def words(self, runner: Any) -> Any:
        state = type("State", (), {"current_stage": runner.StateStage.Execute})()
        return runner.PyinfraLog(lambda event, **fields: None, state)

    def say(self, words: Any, level: int, text: str) -> None:
        words.emit(logging.LogRecord("pyinfra", level, "", 0, text, (), None))

    def test_reason_contains_errors_of_the_last_operation_only(self, words: Any) -> None:
        self.say(words, logging.INFO, "--> Starting operation: one")
        self.say(words, logging.ERROR, "    [x] first")
        self.say(words, logging.INFO, "--> Starting operation: two")
        self.say(words, logging.INFO, "    [x] fine")
        self.say(words, logging.ERROR, "\x1b[31m    [x] second\x1b[0m")
        self.say(words, logging.ERROR, "    [x] Error: executed 0 commands")
        assert words.why() == "two: second"

    def test_reason_without_output_is_the_given_default(self, words: Any) -> None:
        assert words.why("No such private key file: /x") == (
            "connection: No such private key file: /x"
        )

    def test_reason_has_the_last_distinct_lines(self, words: Any) -> None:
        for number in range(40):
            self.say(words, logging.WARNING, f"line {number // 2}")
        assert words.why().splitlines() == [
            "connection: line 5",
            *(f"line {number}" for number in range(6, 20)),
        ]


def test_every_deployment_command_runs_in_the_deploy_slice(runner: Any) -> None:
    with fake_host({}) as host:
        text_file("/etc/x", "new\n")
        runner._put_in_slice(host.state, "20250131_120000-abcd1234")
        (operation,) = host.state.ops[host.host].values()
        (command,) = operation.command_generator()
        arguments = {key: operation.global_arguments[key] for key in ("_sudo", "_shell_executable")}
        line = str(make_unix_command(command, **arguments))
    assert line.startswith("sudo -H -n systemd-run --quiet --scope ")
    assert "--slice=polydev-deploy.slice" in line
    assert shlex.split(line)[-3:] == ["sh", "-c", str(command)]


def test_sudo_that_asks_for_a_password_is_an_error(runner: Any) -> None:
    """pyinfra would wait on standard input for an answer, for ever."""
    said = CommandOutput([OutputLine("stderr", "sudo: a password is required")])
    with fake_host({}) as host, pytest.raises(DeployError, match="asks for a password") as told:
        execute_command_with_sudo_retry(host.host, {}, lambda: (1, said))
    assert "NOPASSWD" in str(told.value.hint)


def test_read_inventory_merges_values_as_pyinfra_does(runner: Any, tmp_path: Path) -> None:
    """A host's own values win over its groups' in their order, those over those of all."""
    (tmp_path / "group_data").mkdir()
    for name, text in {
        "all": "import os\nfrom typing import Any as _any\na = b = c = d = e = 'all'\n",
        "berlin": "b = c = d = e = 'berlin'\n",
        "sites": "c = d = e = 'file'\n",
    }.items():
        (tmp_path / "group_data" / f"{name}.py").write_text(text)
    file = tmp_path / "sites.py"
    file.write_text(
        "browser_hosts = ([('x', {'e': 'own'}), 'y'], {'a': 'list', 'd': 'list'})\nberlin = ['x']\n"
    )
    from pyinfra_cli.inventory import make_inventory

    with ctx_state.use(State()):
        wanted = make_inventory(str(file), {}, str(tmp_path / "elsewhere"))
    found = read_inventory(file)
    assert found == {host.name: dict(host.data.dict()) for host in wanted}
    assert found["x"] == {"a": "list", "b": "berlin", "c": "file", "d": "file", "e": "own"}


class TestProcess:
    @pytest.fixture
    def lines(self, runner: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
        """Run it as `python -m` would; return its exit status and the parsed lines."""
        asked: list[object] = []
        monkeypatch.setattr("polydev.host_setup.__main__.ctypes.CDLL", lambda _: Process(asked))

        def run(*words: str) -> tuple[int, Events]:
            status = process.main([*words])
            assert asked == [(process.PR_SET_PDEATHSIG, signal.SIGKILL)]
            return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

        return run

    def test_describe_prints_the_hosts(self, lines: Any, tmp_path: Path) -> None:
        inventory = tmp_path / "inventory.py"
        inventory.write_text("browser_hosts = [('browsers', {})]\n")
        status, said = lines("describe", "--inventory", str(inventory))
        assert status == 0
        assert [each["name"] for each in said[0]["hosts"]] == ["browsers"]

    def test_config_error_is_printed_as_an_event(self, lines: Any, tmp_path: Path) -> None:
        status, said = lines("describe", "--inventory", str(tmp_path / "none.py"))
        assert status == 1
        assert (said[0]["event"], said[0]["error"]) == ("error", "config")
        assert said[0]["hint"]

    @pytest.mark.parametrize(
        ("deploy", "missing"),
        [
            (
                "from polydev.host_setup.render import render\nrender('/etc/x.conf', {})",
                "x.conf.j2",
            ),
            ("open('requirements/lock.txt')", "requirements/lock.txt"),
            ("import polydev.host_setup.gone", "module polydev.host_setup.gone"),
            (None, "deploy.py"),
        ],
    )
    def test_checkout_changed_during_apply_is_reported(
        self,
        lines: Any,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        deploy: str | None,
        missing: str,
    ) -> None:
        (tmp_path / "inventory.py").write_text("browser_hosts = ['@fake/0']\n")
        (tmp_path / "templates").mkdir()
        if deploy:
            (tmp_path / "deploy.py").write_text(deploy)
        monkeypatch.chdir(tmp_path)
        status, said = lines("apply", "--inventory", "inventory.py")
        assert (status, said[-1]["event"], said[-1]["error"]) == (1, "error", "config")
        assert missing in said[-1]["message"]
        assert "the checkout changed while it was deployed" in said[-1]["message"]
        assert "run it again" in said[-1]["hint"]

    def test_missing_file_outside_the_checkout_is_not_reported_as_changed(
        self, lines: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "inventory.py").write_text("browser_hosts = ['@fake/0']\n")
        (tmp_path / "deploy.py").write_text("open('/nowhere/at/all')")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(FileNotFoundError, match="nowhere"):
            lines("apply", "--inventory", "inventory.py")

    def test_apply_passes_its_options_to_the_runner(
        self, lines: Any, runner: Any, monkeypatch: Any
    ) -> None:
        seen = []

        def apply(self: Any, name: str, data: dict[str, Any], *, plan_only: bool) -> int:
            seen.append((str(self.inventory), str(self.deploy), name, data, plan_only))
            return 0

        monkeypatch.setattr(runner.Runner, "apply", apply)
        words = ["apply", "--inventory", "inventory/lab.py", "--host", "x"]
        lines(*words, "--data", '{"slots": 3}', "--plan")
        assert seen == [("inventory/lab.py", "deploy.py", "x", {"slots": 3}, True)]

    @pytest.mark.parametrize("words", [[], ["describe"], ["destroy", "--inventory", "x"]])
    def test_unknown_arguments_exit_with_status_2(self, words: list[str]) -> None:
        with pytest.raises(SystemExit) as end:
            process.main(words)
        assert end.value.code == 2


class Process:
    """A fake C library, which gets the request to end this process with its parent."""

    def __init__(self, asked: list[object]) -> None:
        self.asked = asked

    def prctl(self, *words: object) -> int:
        self.asked.append(words)
        return 0

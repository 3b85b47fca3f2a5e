"""Output and exit status of verbs."""

from __future__ import annotations

import errno
import json
import signal
from collections.abc import Iterator
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from invoke.context import Context
from pydantic import BaseModel

from polydev.cli import answer, edge, megabytes
from polydev.errors import BuildError, ConfigError, Error
from polydev.settings import Settings
from verbs import alerts, deployments, golden, host_shell_and_logs, sessions, vms
from verbs.text_tables import more_text


@pytest.fixture(autouse=True)
def handler_of_termination() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@edge
def verb(error: BaseException | None = None, json: bool = False) -> str:
    if error is not None:
        raise error
    return "done"


def test_successful_verb_prints_nothing_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert verb() == "done"
    assert capsys.readouterr() == ("", "")


def test_error_ends_with_one_message_and_the_next_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        verb(BuildError("layer base could not be built", "./inv golden.build --no-cache"))
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "error: layer base could not be built",
        "next:  ./inv golden.build --no-cache",
    ]


def test_error_without_a_hint_has_no_empty_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        verb(Error("that is all"))
    assert capsys.readouterr().err == "error: that is all\n"


def test_message_is_printed_without_markup_or_wrapping(capsys: pytest.CaptureFixture[str]) -> None:
    message = "layers[0] (base): [red]no markup[/red] " + "x" * 300
    with pytest.raises(SystemExit):
        verb(Error(message))
    assert capsys.readouterr().err == f"error: {message}\n"


def test_error_is_json_with_the_json_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        verb(ConfigError("unknown key", "see the README", key="colour"), json=True)
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "error": "config",
        "message": "colour: unknown key",
        "hint": "see the README",
    }
    assert "error: colour: unknown key" in err


def test_unknown_log_level_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYDEV_LOG", "loud")
    with pytest.raises(SystemExit):
        verb()
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "error: POLYDEV_LOG=loud is not a log level"
    assert "debug" in said[1]


@pytest.mark.parametrize(
    ("value", "store"),
    [("", Path("/var/lib/firecracker/snapshots/base")), ("/a b", Path("/a b"))],
)
def test_empty_store_variable_gives_the_default(value: str, store: Path) -> None:
    assert Settings.from_environment({"POLYDEV_STORE": value}).store == store


def test_relative_state_folder_becomes_absolute() -> None:
    assert Settings.from_environment({"POLYDEV_STATE": "here"}).state == Path.cwd() / "here"


def test_interrupt_exits_with_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        verb(KeyboardInterrupt())
    assert ended.value.code == 130
    assert "interrupted" in capsys.readouterr().err


def test_os_error_is_reported_with_its_path_and_a_hint(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    wanted = tmp_path / "file" / "state"
    wanted.parent.touch()
    for refusal, hint in (
        (PermissionError(errno.EACCES, "Permission denied", str(wanted)), "usually root"),
        (OSError(errno.ENOSPC, "No space left on device", str(wanted)), "free disk space there"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", str(wanted)), "POLYDEV_LOG=debug"),
    ):
        with pytest.raises(SystemExit) as ended:
            verb(refusal, json=True)
        assert ended.value.code == 1
        told = json.loads(capsys.readouterr().out)
        assert told["message"] == f"cannot use {wanted}: {refusal.strerror}"
        assert hint in told["hint"]


def test_broken_pipe_is_not_reported_as_a_file_error() -> None:
    with pytest.raises(BrokenPipeError):
        verb(BrokenPipeError(errno.EPIPE, "Broken pipe"))


@pytest.mark.parametrize(
    ("asked", "options", "said"),
    [
        (sessions.sessions, {"limit": 0}, "--limit 0 is too small"),
        (vms.vms, {"limit": -1}, "--limit -1 is too small"),
        (vms.console, {"vm": "abcd", "lines": -5}, "--lines -5 is too small"),
        (sessions.sessions, {"limit": 10**20}, "--limit is too large"),
        (golden.verify, {"image": "golden", "deadline": inf}, "--deadline is too large"),
        (alerts.alerts, {"hours": -1}, "--hours -1 is too small"),
        (alerts.alerts, {"limit": 0}, "--limit 0 is too small"),
        (deployments.deployments, {"limit": 0}, "--limit 0 is too small"),
        (host_shell_and_logs.logs, {"lines": 0}, "--lines 0 is too small"),
        (golden.prune, {"keep": -1}, "--keep -1 is too small"),
        (golden.verify, {"image": "golden", "deadline": -5.0}, "--deadline -5 is too small"),
        (golden.verify, {"image": "golden", "deadline": nan}, "--deadline nan is too small"),
        (sessions.viewer, {"session": "abcd", "port": 99_999}, "--port 99999 is not a port"),
    ],
)
def test_out_of_range_numbers_are_refused(
    capsys: pytest.CaptureFixture[str], asked: Any, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(SystemExit):
        asked.body(Context(), json=True, **options)
    assert json.loads(capsys.readouterr().out)["message"] == said


def test_unexpected_exceptions_are_not_caught() -> None:
    with pytest.raises(ZeroDivisionError):
        verb(ZeroDivisionError())


def test_sigterm_raises_keyboard_interrupt() -> None:
    verb()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


class Thing(BaseModel):
    size_bytes: int


@pytest.mark.parametrize("value", [Thing(size_bytes=1), {"size_bytes": 1}])
def test_answer_is_json_or_text(
    capsys: pytest.CaptureFixture[str], value: Thing | dict[str, int]
) -> None:
    answer(value, as_json=True, text="1 byte")
    assert json.loads(capsys.readouterr().out) == {"size_bytes": 1}
    answer(value, as_json=False, text="1 byte [of 2]")
    assert capsys.readouterr().out == "1 byte [of 2]\n"


def test_megabytes_have_thousands_separators() -> None:
    assert megabytes(1_234_567_890) == "1,235 MB"


@pytest.mark.parametrize(
    ("is_cut", "all_of_them", "said"),
    [
        (True, True, ["--limit"]),
        (True, False, ["--limit", "--all"]),
        (False, False, ["--all"]),
        (False, True, []),
    ],
)
def test_more_text_names_the_options_to_see_more(
    is_cut: bool, all_of_them: bool, said: list[str]
) -> None:
    told = more_text(is_cut, 50, all_of_them=all_of_them)
    assert [word for word in ("--limit", "--all") if word in told] == said
    assert told.count("\n") == len(said)

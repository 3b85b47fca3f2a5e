"""The edge: what a verb prints where, and how it ends."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from polydev.cli import answer, edge, megabytes
from polydev.errors import BuildError, ConfigError, Error
from polydev.settings import Settings
from verbs.tables import more_text


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


def test_verb_that_works_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_message_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    message = "layers[0] (base): [red]no markup[/red] " + "x" * 300
    with pytest.raises(SystemExit):
        verb(Error(message))
    assert capsys.readouterr().err == f"error: {message}\n"


def test_error_is_json_where_json_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_a_level_of_logs_that_is_none_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYDEV_LOG", "loud")
    with pytest.raises(SystemExit):
        verb()
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "error: the variable POLYDEV_LOG: loud is no level of logs"
    assert "debug" in said[1]


@pytest.mark.parametrize(
    ("value", "store"),
    [("", Path("/var/lib/firecracker/snapshots/base")), ("/a b", Path("/a b"))],
)
def test_a_folder_that_is_set_to_nothing_is_the_usual_one(value: str, store: Path) -> None:
    assert Settings.from_environment({"POLYDEV_STORE": value}).store == store


def test_a_folder_that_is_set_is_the_same_wherever_a_process_is() -> None:
    assert Settings.from_environment({"POLYDEV_STATE": "here"}).state == Path.cwd() / "here"


def test_interrupt_ends_as_shells_expect(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        verb(KeyboardInterrupt())
    assert ended.value.code == 130
    assert "interrupted" in capsys.readouterr().err


def test_bug_is_not_dressed_up_as_an_error() -> None:
    with pytest.raises(ZeroDivisionError):
        verb(ZeroDivisionError())


def test_termination_is_an_interrupt_to_a_verb() -> None:
    verb()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


class Thing(BaseModel):
    size_bytes: int


@pytest.mark.parametrize("value", [Thing(size_bytes=1), {"size_bytes": 1}])
def test_answer_is_for_programs_or_for_people(
    capsys: pytest.CaptureFixture[str], value: Thing | dict[str, int]
) -> None:
    answer(value, as_json=True, text="1 byte")
    assert json.loads(capsys.readouterr().out) == {"size_bytes": 1}
    answer(value, as_json=False, text="1 byte [of 2]")
    assert capsys.readouterr().out == "1 byte [of 2]\n"


def test_megabytes() -> None:
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
def test_a_list_says_how_to_see_more(is_cut: bool, all_of_them: bool, said: list[str]) -> None:
    told = more_text(is_cut, 50, all_of_them=all_of_them)
    assert [word for word in ("--limit", "--all") if word in told] == said
    assert told.count("\n") == len(said)

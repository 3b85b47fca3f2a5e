"""Commands in messages: they exist, and they name the host of the verb."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from invoke.collection import Collection
from invoke.context import Context
from invoke.tasks import task

from polydev.cli import answer, edge
from polydev.errors import DeployError
from polydev.invoke_program import Verbs
from polydev.suggested_commands import with_options
from tests.verbs import VERBS

ROOT = Path(__file__).parents[2]
TAKES = {name: frozenset(verb.args) for name, verb in VERBS.items()}
CHOSEN = {"inventory": "inventory/production.py", "host": "b-1"}
SAME = "--inventory inventory/production.py --host b-1"
# Commands whose verb is filled in at run time, or Invoke's own options.
NAMED = re.compile(r"\./inv ([a-z]+(?:\.[a-z]+)?)(?![\w.]*\w)")


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("back with ./inv database.restore F", f"back with ./inv database.restore {SAME} F"),
        ("./inv database.restore F --stop", f"./inv database.restore {SAME} F --stop"),
        (
            "wait for it, or end it: `./inv unlock`",
            f"wait for it, or end it: `./inv unlock {SAME}`",
        ),
        (
            "./inv deploy mends; ./inv drift shows",
            f"./inv deploy {SAME} mends; ./inv drift {SAME} shows",
        ),
        ("./inv rollback --to 1", f"./inv rollback {SAME} --to 1"),
        (
            "./inv deployments,\nthen ./inv deploy.",
            f"./inv deployments {SAME},\nthen ./inv deploy {SAME}.",
        ),
        ("./inv golden.build, then ./inv deploy", f"./inv golden.build, then ./inv deploy {SAME}"),
        ("./inv token.list --inventory F", "./inv token.list --host b-1 --inventory F"),
        ("./inv lab.up starts one", "./inv lab.up starts one"),
        ("./inv --help VERB shows", "./inv --help VERB shows"),
        ("no command", "no command"),
    ],
)
def test_command_gets_the_options_it_accepts(said: str, wanted: str) -> None:
    assert with_options(said, TAKES, CHOSEN) == wanted
    assert with_options(wanted, TAKES, CHOSEN) == wanted


def test_option_values_are_quoted_for_the_shell() -> None:
    said = with_options("./inv unlock", TAKES, {"inventory": "my hosts.py"})
    assert said == "./inv unlock --inventory 'my hosts.py'"


def test_without_options_nothing_is_added() -> None:
    assert with_options("./inv unlock", TAKES, {}) == "./inv unlock"


def test_every_command_in_a_message_exists() -> None:
    files = [*ROOT.glob("src/**/*.py"), *ROOT.glob("verbs/*.py"), ROOT / "tasks.py"]
    named = {verb for file in files for verb in NAMED.findall(file.read_text())}
    assert "unlock" in named
    assert named - {"lists", "once"} - set(TAKES) == set()


@task
@edge
def unlock(_context: Context, inventory: str = "lab", host: str = "", json: bool = False) -> None:
    answer({}, as_json=json, text="then ./inv unlock")


@task
@edge
def deploy(_context: Context, inventory: str = "lab", host: str = "", json: bool = False) -> None:
    raise DeployError("held, see ./inv unlock", "./inv unlock")


def said_by(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    program = Verbs(namespace=Collection(unlock, deploy), binary="./inv")
    with suppress(SystemExit):
        program.run(["inv", *words], exit=False)
    return SimpleNamespace(**capsys.readouterr()._asdict())


def test_commands_in_messages_repeat_the_given_options(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--inventory", "p.py", "--host", "b-1"]
    same = "./inv unlock --inventory p.py --host b-1"
    assert said_by(capsys, "unlock", *words).out == f"then {same}\n"
    said = said_by(capsys, "deploy", *words, "--json")
    assert said.err == f"error: held, see {same}\nnext:  {same}\n"
    assert json.loads(said.out)["hint"] == same


def test_options_of_an_earlier_verb_are_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    said_by(capsys, "deploy", "--inventory", "p.py")
    assert said_by(capsys, "unlock").out == "then ./inv unlock\n"

"""Short options: one letter means the same in every verb; and every verb has its help."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from inspect import get_annotations
from pathlib import Path

import pytest

import tasks
from polydev.cli import SHORT_OPTIONS
from polydev.invoke_program import WORD_OF
from tasks import namespace
from tests.verbs import VERBS

# This option has one letter only, as in pytest.
WHOLE = {"k"}


def test_each_short_option_has_one_meaning() -> None:
    meanings: dict[str, set[str]] = defaultdict(set)
    for verb in VERBS.values():
        for option in verb.args.values():
            for name in option.names:
                if len(name) == 1 and name not in WHOLE:
                    meanings[name].add(str(option.name))
    assert meanings == {letter: {name} for name, letter in SHORT_OPTIONS.items()}


def test_positional_arguments_match_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "verbs.md").read_text()
    shown = dict(re.findall(r"^`\./inv ([a-z.]+)(.*?)`", text, re.MULTILINE))
    assert shown["webhook.try"] == " [ENDPOINT]"
    taken = {name: len(verb.positional_args) + (name in WORD_OF) for name, verb in VERBS.items()}
    assert taken == {name: len(words.split()) for name, words in shown.items()}


def test_positional_arguments_are_text_without_a_default() -> None:
    """Invoke does not convert positional arguments, and they cannot be optional."""
    words = [(name, each) for name, verb in VERBS.items() for each in verb.positional_args]
    assert [(name, each.name) for name, each in words if each.default is not None] == []
    hints = {name: get_annotations(namespace[name].body.__wrapped__) for name, _ in words}
    assert [name for name, each in words if hints[name][str(each.name)] != "str"] == []
    assert [name for name, option in WORD_OF.items() if option[2:] not in VERBS[name].args] == []


def test_no_short_option_replaces_help() -> None:
    assert "h" not in SHORT_OPTIONS.values()


@pytest.mark.parametrize("name", VERBS)
def test_every_option_has_help(name: str) -> None:
    options = VERBS[name].args.values()
    assert [option.name for option in options if not option.help] == []


@pytest.mark.parametrize(
    "name",
    [
        "sessions",
        "vms",
        "console",
        "screenshot",
        "usage",
        "viewer",
        "alerts",
        "webhooks",
        "webhook.resend",
        "webhook.try",
        "session.start",
        "session.end",
    ],
)
def test_controller_verbs_have_connection_options(name: str) -> None:
    assert {"url", "token", "inventory", "host"} <= set(VERBS[name].args)


def answers() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each call of `answer` with its keyword arguments."""
    root = Path(__file__).parents[2]
    for file in (root / "tasks.py", *sorted((root / "verbs").glob("*.py"))):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "answer":
                given = {str(word.arg): ast.unparse(word.value) for word in node.keywords}
                yield f"{file.name}:{node.lineno}", given


def test_every_answer_respects_the_json_option() -> None:
    given = {place: words.get("as_json") for place, words in answers()}
    assert given
    assert [place for place, words in answers() if "text" not in words] == []
    assert {place: text for place, text in given.items() if text not in ("json", "True")} == {}


def test_each_verb_with_json_calls_answer() -> None:
    silent = []
    root = Path(__file__).parents[2]
    for file in (root / "tasks.py", *sorted((root / "verbs").glob("*.py"))):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and "json" in {
                each.arg for each in node.args.args
            }:
                names = {ast.unparse(each) for each in ast.walk(node) if isinstance(each, ast.Name)}
                silent += [] if "answer" in names else [f"{file.name}: {node.name}"]
    assert silent == []


def test_tests_of_selects_by_kind_or_word_in_file_names() -> None:
    assert tasks.tests_of("unit") == ["tests/unit"]
    login = tasks.tests_of("login")
    assert {"tests/unit/test_agent_login.py", "tests/integration/test_oidc_login.py"} <= set(login)
    assert not [file for file in login if file.startswith("tests/spec")]
    assert tasks.tests_of("logi") == []

"""Usage errors of ./inv: the message and the hint."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from invoke.collection import Collection
from invoke.context import Context
from invoke.tasks import task

from polydev.invoke_program import Verbs
from polydev.processes import Completed, run

ROOT = Path(__file__).resolve().parents[2]


@task(positional=["vm"])
def console(
    _context: Context, vm: str, lines: int = 100, pause: float = 1.0, json: bool = False
) -> None:
    print(vm, lines)


@task
def sessions(_context: Context, json: bool = False) -> None:
    """Accept no arguments."""


@task
def deployments(_context: Context, id: str = "", host: str = "") -> None:
    print(id, host)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str, str]:
    """Return standard output, the error and the hint."""
    program = Verbs(namespace=Collection(console, sessions), binary="./inv")
    with pytest.raises(SystemExit) as ended:
        program.run(["inv", *words])
    assert ended.value.code == 1
    said = capsys.readouterr()
    error, hint = said.err.splitlines()
    return said.out, error.removeprefix("error: "), hint.removeprefix("next:  ")


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        ("consle 1", "there is no verb consle; did you mean console?", "./inv lists the verbs"),
        ("xyz", "there is no verb xyz", "./inv lists the verbs"),
        ("sessions --nonsense", "sessions has no option --nonsense", "./inv sessions --help"),
        ("--nonsense", "unknown option --nonsense", "./inv lists the verbs"),
        ("sessions more", "sessions does not take 'more'", "./inv sessions --help"),
        ("console abcd --lines many", "'many' is not a whole number", "./inv console --help"),
        ("console abcd --pause long", "'long' is not a number", "./inv console --help"),
        ("console abcd --lines", "--lines needs a value", "./inv console --help"),
        ("console --vm=", "--vm needs a value that is not empty", "./inv console --help"),
        (
            "console",
            "'console' did not receive required positional arguments: 'vm'",
            "./inv console --help",
        ),
    ],
)
def test_usage_errors_have_a_message_and_a_hint(
    capsys: pytest.CaptureFixture[str], words: str, error: str, hint: str
) -> None:
    assert refused(capsys, *words.split()) == ("", error, hint)


@pytest.mark.parametrize("asked", ["--json", "-j"])
def test_usage_error_is_json_with_the_json_option(
    capsys: pytest.CaptureFixture[str], asked: str
) -> None:
    out, error, hint = refused(capsys, "sessions", asked, "--nonsense")
    assert json.loads(out) == {"error": "config", "message": error, "hint": hint}


def test_valid_command_line_runs_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    Verbs(namespace=Collection(console, sessions)).run(["inv", "console", "abcd"], exit=False)
    assert capsys.readouterr().out == "abcd 100\n"


@pytest.mark.parametrize(
    ("words", "out"),
    [
        ("deployments 2026", "2026 "),
        ("deployments --host a a", "a a"),
        ("deployments 2026 --host a", "2026 a"),
        ("deployments --id 2026", "2026 "),
        ("deployments", " "),
    ],
)
def test_optional_positional_argument(
    capsys: pytest.CaptureFixture[str], words: str, out: str
) -> None:
    Verbs(namespace=Collection(deployments)).run(["inv", *words.split()], exit=False)
    assert capsys.readouterr().out == f"{out}\n"


def test_surplus_argument_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    program = Verbs(namespace=Collection(deployments), binary="./inv")
    with pytest.raises(SystemExit):
        program.run(["inv", "deployments", "1", "2"])
    assert "deployments does not take '2'" in capsys.readouterr().err


def run_where(state: Path, redirections: str, **environment: str) -> Completed:
    """Run the verb `where`, which finds nothing, in a shell with these redirections."""
    line = f"{sys.executable} -m polydev where {redirections}"
    folders = {f"POLYDEV_{each}": str(state) for each in ("STATE", "STORE", "CACHE")}
    return run(["bash", "-c", line], cwd=ROOT, env={**folders, **environment}, check=False)


def test_verb_works_with_closed_streams(tmp_path: Path) -> None:
    assert run_where(tmp_path, "<&-").stdout == "nothing is running: ./inv up\n"
    for redirections in (">&-", ">&- 2>&-", "<&- >&- 2>&-"):
        done = run_where(tmp_path, redirections)
        assert (done.status, done.stderr) == (0, "")


@pytest.mark.parametrize("option", ["", "--json"])
def test_output_that_cannot_be_written_is_an_error(tmp_path: Path, option: str) -> None:
    done = run_where(tmp_path, f"{option} >/dev/full")
    assert done.status == 1
    assert done.stderr.startswith("error: cannot write: No space left on device\nnext:  free space")


def test_verb_prints_in_no_columns(tmp_path: Path) -> None:
    done = run_where(tmp_path, "", COLUMNS="0")
    assert done.stdout == "nothing is running: ./inv up\n"

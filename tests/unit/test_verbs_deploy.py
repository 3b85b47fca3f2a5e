"""Verbs that deploy, outside of a checkout or with wrong options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from invoke.context import Context

import tasks
from polydev.deployment import deploy_and_rollback
from polydev.deployment.pyinfra_process import Operation, Plan
from verbs import database, deploy


def refusal(capsys: pytest.CaptureFixture[str], verb: Any, **options: Any) -> dict[str, str]:
    """Return the JSON answer of a verb that fails."""
    with pytest.raises(SystemExit) as ended:
        verb.body(Context(), json=True, **options)
    assert ended.value.code == 1
    told: dict[str, str] = json.loads(capsys.readouterr().out)
    return told


CHANGING = [deploy.deploy, deploy.rollback, deploy.backup, database.move]


@pytest.mark.parametrize("verb", [*CHANGING, tasks.up])
def test_checkout_without_a_commit_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verb: Any
) -> None:
    for module in (deploy, tasks):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    told = refusal(capsys, verb, **({"to": "postgresql"} if verb is database.move else {}))
    assert told["error"] == "config"
    assert told["message"].startswith(f"{tmp_path} is not a git checkout with a commit")
    assert "git init" in told["hint"]
    assert ("--no-lab" in told["hint"]) == (verb is tasks.up)


@pytest.mark.parametrize("verb", CHANGING)
@pytest.mark.parametrize("wait", [-1.0, float("inf"), float("nan")])
def test_invalid_wait_seconds_are_refused(
    capsys: pytest.CaptureFixture[str], verb: Any, wait: float
) -> None:
    options = {"to": "postgresql"} if verb is database.move else {}
    told = refusal(capsys, verb, wait=wait, **options)
    assert "is not a number of seconds" in told["message"]


@pytest.mark.parametrize("to", ["", "sqlite", "mysql"])
def test_database_move_accepts_only_postgresql(capsys: pytest.CaptureFixture[str], to: str) -> None:
    told = refusal(capsys, database.move, to=to)
    assert "database.move --to postgresql" in told["hint"]
    assert "./inv rollback" in told["hint"]


@pytest.mark.parametrize(
    ("detailed", "changing", "status"), [(True, True, 2), (True, False, 0), (False, True, 0)]
)
def test_detailed_exit_code_of_a_plan(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    detailed: bool,
    changing: bool,
    status: int,
) -> None:
    plan = Plan((Operation("a", changing, ("+ a",) * changing),), ("another commit",) * changing)
    monkeypatch.setattr(deploy, "described_host", lambda *_: (None, None))
    monkeypatch.setattr(deploy_and_rollback, "plan", lambda *_: plan)
    for as_json in (True, False):
        with pytest.raises(SystemExit) as ended:
            deploy.deploy.body(Context(), plan=True, detailed_exitcode=detailed, json=as_json)
        assert ended.value.code == status
        assert ("another commit" in capsys.readouterr().out) == changing

"""The warning about a host whose deployed commit this checkout does not contain."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest

from polydev.deployment.deploy_and_rollback import commit_warning
from polydev.deployment_records import Record
from polydev.processes import run

AT = datetime(2025, 1, 31, tzinfo=timezone.utc)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet", "--initial-branch", "main")
    commit(tmp_path)
    return tmp_path


def git(root: Path, *words: str) -> str:
    who = ["-c", "user.name=ada", "-c", "user.email=ada@example.com"]
    return run(["git", "-C", root, *who, *words]).stdout.strip()


def commit(root: Path, what: str = "one more") -> str:
    git(root, "commit", "--quiet", "--allow-empty", "--message", what)
    return git(root, "rev-parse", "--short=8", "HEAD")


def warning(root: Path, on_host: str) -> str | None:
    before = Record(
        id="before",
        commit=on_host,
        host="b-1",
        who="ben@desk",
        started_at=AT,
        status="succeeded",
        state="before",
        changes=1,
    )
    return commit_warning(root, [before])


def test_no_warning_if_checkout_has_deployed_commit_or_descendant(checkout: Path) -> None:
    first = git(checkout, "rev-parse", "--short=8", "HEAD")
    assert warning(checkout, first) is None
    assert warning(checkout, f"{first}-dirty") is None
    commit(checkout)
    assert warning(checkout, first) is None


def test_warns_of_a_commit_of_another_branch(checkout: Path) -> None:
    git(checkout, "checkout", "--quiet", "-b", "other")
    other = commit(checkout, "on the other branch")
    git(checkout, "checkout", "--quiet", "main")
    commit(checkout)
    said = str(warning(checkout, other))
    assert f"b-1 was deployed by ben@desk from commit {other}" in said
    assert "does not contain" in said


def test_warns_of_an_unknown_commit(checkout: Path) -> None:
    assert "does not have" in str(warning(checkout, "0123abcd"))


def test_no_warning_for_a_host_without_a_commit(checkout: Path) -> None:
    assert warning(checkout, "0000") is None
    assert warning(checkout, "") is None
    assert commit_warning(checkout, []) is None

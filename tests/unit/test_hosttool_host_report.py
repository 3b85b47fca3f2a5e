"""The host tool's answers for a plan, by one call; the schema of a release without asking it."""

from __future__ import annotations

import argparse
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from polydev.hosttool import database_schema_cache, host_report
from polydev.hosttool.errors import HostError
from polydev.hosttool.paths import Paths
from polydev.hosttool.run_controller_command import ControllerProgram
from polydev.hosttool.verb import Call

RELEASE = "20250131_120000-abcd"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """A host with a release and its SQLite database."""
    paths = Paths.below(tmp_path)
    program = paths.controller / "releases" / RELEASE / "venv/bin/master-controller"
    program.parent.mkdir(parents=True)
    program.touch()
    (paths.controller / "current").symlink_to(f"releases/{RELEASE}")
    paths.controller_home.mkdir(parents=True)
    execute(
        paths,
        "CREATE TABLE users (id, role)",
        "CREATE INDEX by_role ON users (role)",
        "CREATE TABLE alembic_version (version_num)",
        "INSERT INTO alembic_version VALUES ('0003')",
    )
    return paths


def execute(paths: Paths, *statements: str) -> None:
    with closing(sqlite3.connect(paths.database)) as connection, connection:
        for each in statements:
            connection.execute(each)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Answers of the release: the last one counts; an empty list means no differences."""
    answers: list[list[str]] = []
    monkeypatch.setattr(
        ControllerProgram, "ask", lambda *_, **__: {"differences": answers[-1] if answers else []}
    )
    return answers


def answer(paths: Paths, **question: Any) -> dict[str, Any]:
    call = Call(argparse.Namespace(), paths)
    return host_report.inspect_host(call, {"parts": list(question), **question})


def database(paths: Paths) -> dict[str, Any]:
    found: dict[str, Any] = answer(paths, database={})["database"]
    return found


def test_unchanged_schema_is_not_checked_again(paths: Paths, asked: list[list[str]]) -> None:
    assert database(paths) == {"database": "SQLite", "differences": []}
    asked.append(["asked again"])
    assert database(paths)["differences"] == []


@pytest.mark.parametrize(
    "change",
    [
        "DROP INDEX by_role",
        "ALTER TABLE users ADD COLUMN mail",
        "CREATE TRIGGER t BEFORE INSERT ON users BEGIN SELECT RAISE(IGNORE); END",
        "UPDATE alembic_version SET version_num = '9999'",
    ],
)
def test_changed_schema_is_checked_until_it_is_right(
    paths: Paths, asked: list[list[str]], change: str
) -> None:
    database(paths)
    execute(paths, change)
    asked.append(["- something"])
    assert database(paths)["differences"] == ["- something"]
    assert database(paths)["differences"] == ["- something"]
    asked.append([])
    assert database(paths)["differences"] == []


def test_unreadable_schema_cache_is_ignored(paths: Paths, asked: list[list[str]]) -> None:
    database(paths)
    paths.known_schema.write_text("x")
    asked.append(["- something"])
    assert database(paths)["differences"] == ["- something"]
    asked.append([])
    assert database(paths)["differences"] == []


def test_schema_is_checked_again_for_another_release(paths: Paths, asked: list[list[str]]) -> None:
    database_schema_cache.remember(paths, "20250101_120000-ffff")
    asked.append(["- something"])
    assert database(paths)["differences"] == ["- something"]


def test_rows_do_not_change_the_schema_checksum(paths: Paths) -> None:
    before = database_schema_cache.checksum(paths.database)
    execute(paths, "INSERT INTO users VALUES ('1', 'admin')", "ANALYZE")
    assert database_schema_cache.checksum(paths.database) == before


def test_error_of_the_release_is_a_difference(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> object:
        raise HostError("database-unusable", "it is at revision 9999", "./inv rollback")

    monkeypatch.setattr(ControllerProgram, "ask", refuse)
    found = database(paths)
    assert found["differences"] == ["- it is at revision 9999"]
    assert found["hint"] == "./inv rollback"


def test_answer_has_requested_parts_with_their_own_errors(paths: Paths) -> None:
    found = answer(paths, release={}, sshd={}, host={})
    assert list(found) == ["release", "sshd"]
    assert found["release"]["release"] == RELEASE
    assert found["sshd"]["error"] == "unread"

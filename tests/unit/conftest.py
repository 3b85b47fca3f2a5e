"""Shared fixtures of unit tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from polydev.controller import health
from polydev.hosttool.paths import Paths
from tests.stores import copy_migrated_database
from tests.unit.command_line import CommandLine
from tests.unit.hosttool_host import Host, bare_host, deploy


@pytest.fixture(autouse=True)
def _database_has_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine this process itself may stand still for longer than a database may."""
    monkeypatch.setattr(health, "DATABASE_TIMEOUT_SECONDS", 600)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database, for tests to copy."""
    file = tmp_path_factory.mktemp("database") / "controller.sqlite3"
    copy_migrated_database(file)
    return file


@pytest.fixture
def controller(migrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The controller's command line, on a database that was migrated."""
    made = CommandLine(tmp_path, capsys)
    shutil.copy(migrated, made.database)
    return made


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """Paths of a host below an empty folder."""
    return Paths.below(tmp_path)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host of the host tool after its first deployment. Tests of other hosts have their own."""
    made = bare_host(tmp_path / "host")
    deploy(made)
    return made

"""The host tool and a host's PostgreSQL: migrated, backed up, restored with the right secret."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from polydev.controller.migrate import migrate as controller_migrate
from polydev.controller.migrations import HEAD
from polydev.hosttool import backup, database_verbs, releases
from polydev.hosttool.backup_manifest import read_backup, require_intact
from polydev.hosttool.cli import parser
from polydev.hosttool.errors import HostError
from polydev.hosttool.run_controller_command import ControllerProgram, database_in_words
from polydev.hosttool.units import MAIN, SOCKET
from polydev.hosttool.verb import Call
from polydev.hosttool.verb_lock import lock_host
from tests.databases import PostgresServer
from tests.stores import opened
from tests.unit.hosttool_host import FIRST, NEW, OLD, SECOND, Host, bare_host, deploy

pytest_plugins = ["tests.databases"]

PASSWORD = "correct horse"
PROGRAM = f"""#!/bin/sh
# Log the arguments, which other users can see, to check that they have no secret.
tr '\\0' '\\n' </proc/self/cmdline >>{{log}}
echo "core dumps: $(ulimit -H -c)" >>{{log}}
exec {sys.executable} -m polydev.controller "$@"
"""


@dataclass
class Databases:
    """A host that can use two databases of a real server."""

    host: Host
    server: PostgresServer
    names: list[str]
    seen: Path

    def url(self, number: int) -> str:
        plain = self.server.url(self.names[number])
        return plain.replace("owner@", f"owner:{PASSWORD.replace(' ', '%20')}@")

    def install(self, release: str) -> None:
        """Install a working program and its configuration."""
        host = self.host
        program = host.controller.release(release) / "venv/bin/master-controller"
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(PROGRAM.format(log=self.seen))
        program.chmod(0o755)
        (host.controller.release(release) / "files.jsonl").unlink(missing_ok=True)
        config = {"database_url": self.sqlite}
        (host.paths.controller_config / "config.yaml").write_text(yaml.safe_dump(config))

    def deploy(self) -> None:
        deploy(self.host, "2", NEW, "b" * 64)
        self.install(NEW)

    def use(self, url: str | None) -> None:
        secret = self.host.paths.controller_config / "secrets" / "database-url"
        if url is None:
            secret.unlink()
            return
        secret.write_text(f"{url}\n")
        secret.chmod(0o600)

    @property
    def sqlite(self) -> str:
        return f"sqlite+aiosqlite:///{self.host.controller.database}"

    def users(self, where: int | str) -> int:
        async def count() -> int:
            async with opened(self._url(where)) as store:
                return len(await store.users.list())

        return asyncio.run(count())

    def add_user(self, where: int | str) -> None:
        async def add() -> None:
            async with opened(self._url(where)) as store:
                await store.new_user()

        asyncio.run(add())

    def _url(self, where: int | str) -> str:
        return where if isinstance(where, str) else self.url(where)


@pytest.fixture
def databases(tmp_path: Path, postgres_server: PostgresServer) -> Iterator[Databases]:
    host = bare_host(tmp_path / "host")
    deploy(host)
    names = [postgres_server.create(), postgres_server.create()]
    found = Databases(host, postgres_server, names, tmp_path / "seen")
    found.install(OLD)
    yield found
    for name in names:
        postgres_server.drop(name)


def migrate(databases: Databases, release: str = OLD) -> dict[str, object]:
    return releases.migrate(release, databases.host.paths)


def test_migration_uses_database_of_the_secret(databases: Databases) -> None:
    databases.use(databases.url(0))
    found = migrate(databases)
    assert str(found["database"]).startswith(f"PostgreSQL, {databases.names[0]} at ")
    assert databases.users(0) == 0
    databases.use(databases.url(1))
    migrate(databases)
    assert databases.users(1) == 0
    seen = databases.seen.read_text()
    assert PASSWORD not in seen
    assert "%20horse" not in seen
    assert {line for line in seen.splitlines() if "core dumps" in line} == {"core dumps: 0"}


def test_restore_uses_database_of_the_backup(databases: Databases) -> None:
    """A deployment that named another database is undone; the former one is unchanged."""
    host = databases.host
    databases.use(databases.url(0))
    migrate(databases)
    databases.add_user(0)
    saved = host.backup()
    assert saved.dump
    assert (saved.dump.revision, saved.dump.database) == (HEAD, database_in_words(host.paths))
    assert json.dumps(saved.as_dict()["database"]).startswith('"PostgreSQL, ')
    require_intact(read_backup(host.paths, FIRST))

    databases.add_user(0)
    databases.use(databases.url(1))
    databases.deploy()
    migrate(databases, NEW)
    databases.add_user(1)

    content = saved.dump.stored.read_bytes()
    saved.dump.stored.write_bytes(b"damage")
    with pytest.raises(HostError, match="is damaged"):
        host.restore()
    saved.dump.stored.write_bytes(content)
    # Restored with the release and the secret of the backup, which are back by then.
    done = host.restore()
    assert done["database"] == saved.dump.database
    assert (databases.users(0), databases.users(1)) == (1, 1)
    assert host.unfinished() == []
    assert not (host.paths.home / "exchange").exists()
    assert PASSWORD not in databases.seen.read_text()


def test_deployment_from_sqlite_to_postgres_can_be_restored(databases: Databases) -> None:
    host = databases.host
    saved = host.backup()
    assert saved.dump is None
    databases.deploy()
    databases.use(databases.url(0))
    migrate(databases, NEW)
    after = host.backup(SECOND)
    assert after.dump
    assert after.database
    assert after.database.copy.stored, "the former one stays in the backup"
    host.restore()
    assert database_in_words(host.paths) == "SQLite"
    assert databases.users(0) == 0, "PostgreSQL keeps what it has"
    host.restore(SECOND)
    assert database_in_words(host.paths) != "SQLite"


def test_missing_database_does_not_block_restore_of_files(
    databases: Databases,
) -> None:
    host = databases.host
    databases.use(databases.url(0))
    migrate(databases)
    host.backup()
    databases.deploy()
    databases.server.drop(databases.names[0])
    with pytest.raises(HostError, match="does not exist") as failure:
        host.restore()
    assert failure.value.code == "restore-incomplete"
    assert os.readlink(host.controller.current) == f"releases/{OLD}"
    databases.names[0] = databases.server.create()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql+psycopg://owner:correct%20horse@/none?host={folder}", "does not exist"),
        ("postgresql+psycopg://owner:correct horse@h:port/data", "blank"),
    ],
)
def test_unusable_database_is_reported_without_password(
    databases: Databases, url: str, said: str
) -> None:
    databases.use(url.format(folder=databases.server.folder))
    for action in (lambda: migrate(databases), lambda: databases.host.backup()):
        with pytest.raises(HostError, match=said) as failure:
            action()
        assert failure.value.hint
        assert "Traceback" not in failure.value.message
        assert "horse" not in failure.value.message
    assert backup.list_backups(databases.host.paths) == []


@pytest.fixture
def on_sqlite(databases: Databases) -> Databases:
    """A host whose controller runs with a SQLite database, with a backup."""
    databases.host.controller.database.unlink()
    asyncio.run(controller_migrate(databases.sqlite))
    databases.add_user(databases.sqlite)
    databases.host.backup()
    databases.add_user(databases.sqlite)
    databases.use(databases.url(0))
    migrate(databases)
    return databases


def move(databases: Databases, *options: str) -> dict[str, Any]:
    """Run `polydev-host database move`; return its answer."""
    words = ["database", "move", "--release", OLD, "--backup", FIRST, *options]
    found = database_verbs.move(
        Call(parser().parse_args(words), databases.host.paths, databases.host.systemd)
    )
    assert isinstance(found, dict)
    return found


def test_database_move_copies_all_rows_and_can_be_restored(
    on_sqlite: Databases,
) -> None:
    host = on_sqlite.host
    host.systemd.log.clear()

    def is_refused(_verb: str, _unit: str) -> bool:
        refused = pytest.raises(HostError, match="the host is busy: database move")
        with refused, lock_host(host.paths, "another one", wait_seconds=0):
            pass
        return False

    host.systemd.fails = is_refused
    found = move(on_sqlite)
    host.systemd.fails = lambda verb, unit: False
    assert (found["release"], found["moved"]["users"]) == (OLD, 2)
    assert found["database"] == database_in_words(host.paths)
    assert on_sqlite.users(0) == 2
    log = host.systemd.log
    assert log[:3] == [f"stop {SOCKET}", f"stop {MAIN}", "daemon-reload"]
    assert f"restart {MAIN}" in log[3:]
    assert PASSWORD not in on_sqlite.seen.read_text()
    assert not (host.paths.home / "exchange").exists()

    # Later rows are written to PostgreSQL only.
    on_sqlite.add_user(0)
    saved = read_backup(host.paths, FIRST)
    assert saved.moved == found["moved"]
    for file in ("moved", "moved.json"):
        content = (saved.folder / file).read_bytes()
        (saved.folder / file).write_bytes(content.replace(b"users", b"usors", 1))
        with pytest.raises(HostError, match="is damaged"):
            host.restore()
        (saved.folder / file).write_bytes(content)
    host.restore()
    assert database_in_words(host.paths) == "SQLite"
    assert (on_sqlite.users(on_sqlite.sqlite), on_sqlite.users(0)) == (2, 3)


def test_failed_database_move_stops_controller_until_restore(
    on_sqlite: Databases,
) -> None:
    host = on_sqlite.host
    with sqlite3.connect(host.controller.database) as live:
        live.execute("UPDATE users SET name = ?", ("x" * 300,))
    with pytest.raises(HostError, match="rejects a row of users"):
        move(on_sqlite)
    assert not host.systemd.states([MAIN])[MAIN].is_running, (
        "it would end VMs that it does not know"
    )
    assert on_sqlite.users(0) == 0
    host.restore()
    assert host.systemd.states([MAIN])[MAIN].is_running
    assert on_sqlite.users(on_sqlite.sqlite) == 2


def test_database_move_deletes_existing_rows_only_with_replace(on_sqlite: Databases) -> None:
    on_sqlite.add_user(0)
    log = on_sqlite.host.systemd.log
    log.clear()
    with pytest.raises(HostError, match="has rows in slots, users already") as failure:
        move(on_sqlite)
    assert "--replace" in str(failure.value.hint)
    assert log == [], "nothing was stopped"
    move(on_sqlite, "--replace")
    assert on_sqlite.users(0) == 2


def test_invalid_backup_file_is_refused_before_controller_stops(
    on_sqlite: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = on_sqlite.host
    host.systemd.log.clear()
    file = tmp_path / "README.md"
    file.write_text("# Not a database\n")
    call = Call(parser().parse_args(["database", "restore", "--stop"]), host.paths, host.systemd)
    monkeypatch.setattr(database_verbs, "_end_by_signal", lambda: None)  # the test goes on
    with file.open() as given:
        monkeypatch.setattr(sys, "stdin", given)
        with pytest.raises(HostError, match="is not a backup of a database"):
            database_verbs.restore(call)
    assert host.systemd.log == []


def test_database_secrets_are_passed_by_environment_only(databases: Databases) -> None:
    databases.use(databases.url(0))
    program = ControllerProgram(databases.host.paths, databases.host.controller.release(OLD))
    assert not any("horse" in word for word in program.argv("migrate"))
    assert "horse" in program.environment()["POLYDEV_CONTROLLER_DATABASE_URL"]
    assert "POLYDEV_CONTROLLER_JWT_SECRET" not in program.environment(), "no verb needs it"

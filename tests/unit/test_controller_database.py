"""Migrations: to the newest, all or nothing; and the settings of connections."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from polydev.controller.database import create_engine, schema_revision
from polydev.controller.migrate import MIGRATIONS, MigrationError, migrate
from polydev.controller.migrations import HEAD
from tests.stores import with_a_failing_migration


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "controller.sqlite3"


@pytest.fixture
def url(file: Path) -> str:
    return f"sqlite+aiosqlite:///{file}"


def dump(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as connection:
        return list(connection.iterdump())


def test_migrating_twice_changes_nothing(url: str, file: Path) -> None:
    assert asyncio.run(migrate(url)) == (None, HEAD)
    first = dump(file)
    assert asyncio.run(migrate(url)) == (HEAD, HEAD)
    assert dump(file) == first


def test_head_is_the_newest_revision() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


@pytest.mark.parametrize("from_nothing", [True, False])
def test_failing_migration_changes_nothing(
    url: str, file: Path, tmp_path: Path, from_nothing: bool
) -> None:
    if not from_nothing:
        asyncio.run(migrate(url))
    before = dump(file)
    folder = with_a_failing_migration(tmp_path / "migrations")
    with pytest.raises(MigrationError, match="CHECK constraint failed: users_role"):
        asyncio.run(migrate(url, folder))
    assert dump(file) == before


def test_unknown_revision_is_refused(url: str, file: Path) -> None:
    asyncio.run(migrate(url))
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(MigrationError, match="9999"):
        asyncio.run(migrate(url))


def test_connections_use_wal_and_foreign_keys(url: str) -> None:
    async def pragmas() -> dict[str, object]:
        engine = create_engine(url)
        async with engine.connect() as connection:
            found = {
                name: (await connection.execute(text(f"PRAGMA {name}"))).scalar_one()
                for name in ("journal_mode", "foreign_keys", "busy_timeout", "synchronous")
            }
        await engine.dispose()
        return found

    assert asyncio.run(pragmas()) == {
        "journal_mode": "wal",
        "foreign_keys": 1,
        "busy_timeout": 20_000,
        "synchronous": 1,
    }


def test_users_have_known_roles_only(url: str) -> None:
    async def add(role: str) -> None:
        engine = create_engine(url)
        try:
            async with engine.begin() as connection:
                statement = text(
                    "INSERT INTO users (id, role, created_at) VALUES (:role, :role, '2026')"
                )
                await connection.execute(statement, {"role": role})
        finally:
            await engine.dispose()

    asyncio.run(migrate(url))
    asyncio.run(add("operator"))
    with pytest.raises(IntegrityError):
        asyncio.run(add("emperor"))


def test_revision_of_a_new_database_is_none(url: str) -> None:
    async def ask() -> str | None:
        engine = create_engine(url)
        try:
            return await schema_revision(engine)
        finally:
            await engine.dispose()

    assert asyncio.run(ask()) is None

"""Migrations on both databases: they make what the tables say, all of it or nothing."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from polydev.controller.database import create_engine, schema_revision
from polydev.controller.migrate import MIGRATIONS, MigrationError, migrate
from polydev.controller.migrations import HEAD
from polydev.controller.store import tables
from polydev.controller.store.transactions import Database
from polydev.controller.store.users import Users
from polydev.run import run
from tests.stores import run_async, with_a_failing_migration

pytest_plugins = ["tests.databases"]


async def look(url: str, asked: Any) -> Any:
    """What a function says of the database that has a synchronous connection."""
    engine = create_engine(url)
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(asked)
    finally:
        await engine.dispose()


def differences(connection: sa.Connection) -> list[Any]:
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return list(compare_metadata(context, tables.metadata))


def schema(connection: sa.Connection) -> dict[str, list[str]]:
    """All that the database knows of our tables, in words."""
    inspector = sa.inspect(connection)
    asked = (
        inspector.get_columns,
        inspector.get_foreign_keys,
        inspector.get_unique_constraints,
        inspector.get_check_constraints,
        inspector.get_indexes,
    )
    names = [name for name in inspector.get_table_names() if name != "alembic_version"]
    return {
        name: [
            json.dumps(inspector.get_pk_constraint(name), default=str),
            # A column that a later revision added stands last: the order does not count.
            *sorted(json.dumps(fact, default=str) for ask in asked for fact in ask(name)),
        ]
        for name in names
    }


@run_async
async def test_migrations_make_what_the_tables_say(empty_url: str) -> None:
    assert await migrate(empty_url) == (None, HEAD)
    assert await look(empty_url, differences) == []
    migrated = await look(empty_url, schema)
    await look(empty_url, tables.metadata.drop_all)
    await look(empty_url, tables.metadata.create_all)
    assert await look(empty_url, schema) == migrated


@run_async
async def test_several_at_once(empty_url: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"database_url": empty_url}))
    words: list[str | Path] = [
        sys.executable,
        "-m",
        "polydev.controller",
        "migrate",
        "--config",
        config,
    ]
    await asyncio.gather(*(asyncio.to_thread(run, words) for _ in range(3)))
    assert await look(empty_url, differences) == []


@run_async
async def test_a_failing_migration_leaves_everything_as_it_was(
    empty_url: str, tmp_path: Path
) -> None:
    await migrate(empty_url)
    before = await look(empty_url, schema)
    folder = with_a_failing_migration(tmp_path / "migrations")
    with pytest.raises(MigrationError, match="users_role"):
        await migrate(empty_url, folder)
    assert await look(empty_url, schema) == before
    assert await migrate(empty_url) == (HEAD, HEAD)


@run_async
async def test_users_of_the_first_revision_stay(empty_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, folder)
    for later in (folder / "versions").glob("r*.py"):
        if not later.name.startswith("r0001_"):
            later.unlink()
    assert await migrate(empty_url, folder) == (None, "0001")
    insert = sa.text("INSERT INTO users VALUES ('1', 'admin', '2026-01-01 12:00:00.000000+00')")
    if empty_url.startswith("sqlite"):
        insert = sa.text("INSERT INTO users VALUES ('1', 'admin', '2026-01-01 12:00:00.000000')")
    await look(empty_url, lambda connection: connection.execute(insert) and None)
    assert await migrate(empty_url) == ("0001", HEAD)
    database = Database(create_engine(empty_url))
    try:
        (user,) = await Users(database).list()
        assert (user.id, user.role, user.name) == ("1", "admin", None)
        assert user.created_at.isoformat() == "2026-01-01T12:00:00+00:00"
    finally:
        await database.close()


@run_async
async def test_a_new_database_has_no_revision(empty_url: str) -> None:
    engine = create_engine(empty_url)
    try:
        assert await schema_revision(engine) is None
    finally:
        await engine.dispose()

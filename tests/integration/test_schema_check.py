"""Migrations on both databases: they make the tables of the model, completely or not at all."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sqlite3
import sys
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from polydev.controller.database import DatabaseUnusable, create_engine, schema_revision
from polydev.controller.migrate import MIGRATIONS, MigrationError, migrate
from polydev.controller.migrations import HEAD
from polydev.controller.store import tables
from polydev.controller.store.database_check import check_database
from polydev.controller.store.schema_check import SchemaError
from polydev.controller.store.transactions import Database
from polydev.controller.store.users import Users
from polydev.processes import run
from tests.databases import sqlite_url
from tests.stores import copy_migrated_database, opened, run_async, with_a_failing_migration

pytest_plugins = ["tests.databases"]


async def look(url: str, asked: Any) -> Any:
    """Return the result of a function that takes a synchronous connection to the database."""
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
    """Return the database's description of our tables as text."""
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
async def test_migrations_make_the_declared_tables(empty_url: str) -> None:
    assert await migrate(empty_url) == (None, HEAD)
    assert await look(empty_url, differences) == []
    migrated = await look(empty_url, schema)
    await look(empty_url, tables.metadata.drop_all)
    await look(empty_url, tables.metadata.create_all)
    assert await look(empty_url, schema) == migrated


@run_async
async def test_concurrent_migrations_all_succeed(empty_url: str, tmp_path: Path) -> None:
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
async def test_migration_waits_longer_for_a_writer_than_requests_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polydev.controller.database.SQLITE_PRAGMAS", ("PRAGMA busy_timeout=1",))
    file = tmp_path / "controller.sqlite3"
    copy_migrated_database(file)
    with closing(sqlite3.connect(file, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        asyncio.get_running_loop().call_later(0.5, writer.rollback)
        assert await migrate(sqlite_url(tmp_path)) == (HEAD, HEAD)


@run_async
async def test_failed_migration_changes_nothing(empty_url: str, tmp_path: Path) -> None:
    await migrate(empty_url)
    before = await look(empty_url, schema)
    folder = with_a_failing_migration(tmp_path / "migrations")
    with pytest.raises(MigrationError, match="users_role"):
        await migrate(empty_url, folder)
    assert await look(empty_url, schema) == before
    assert await migrate(empty_url) == (HEAD, HEAD)


@run_async
async def test_migration_keeps_users_of_first_revision(empty_url: str, tmp_path: Path) -> None:
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


BOTH, POSTGRESQL = ("sqlite", "postgresql"), ("postgresql",)


@dataclass(frozen=True)
class Edit:
    """A manual change of a database, and the differences reported for it."""

    statement: str
    lines: tuple[str, ...]
    kinds: tuple[str, ...] = BOTH


MENDED = (
    Edit("DROP INDEX vms_created", ("+ index vms_created",)),
    Edit("DROP INDEX vms_slot_held", ("+ index vms_slot_held",)),
    Edit(
        "DROP INDEX vms_slot_held; CREATE UNIQUE INDEX vms_slot_held ON vms (slot)"
        " WHERE released_at IS NOT NULL",
        (
            "- index vms_slot_held: of released_at IS NOT NULL",
            "+ index vms_slot_held: of released_at IS NULL",
        ),
    ),
    Edit("CREATE UNIQUE INDEX one_role ON users (role)", ("- index one_role",)),
    Edit(
        "CREATE TRIGGER silence BEFORE INSERT ON users BEGIN SELECT RAISE(IGNORE); END",
        ("- trigger silence on users",),
        ("sqlite",),
    ),
    Edit(
        "CREATE TRIGGER silence BEFORE INSERT ON users FOR EACH ROW"
        " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        ("- trigger silence on users",),
        POSTGRESQL,
    ),
    Edit(
        "CREATE RULE silence AS ON INSERT TO users DO INSTEAD NOTHING",
        ("- rule silence on users",),
        POSTGRESQL,
    ),
    Edit(
        "CREATE POLICY all_rows ON users USING (true)",
        ("- policy all_rows on users",),
        POSTGRESQL,
    ),
    Edit(
        "ALTER TABLE users DISABLE ROW LEVEL SECURITY",
        ("+ table users: row level security",),
        POSTGRESQL,
    ),
    Edit(
        "ALTER TABLE users FORCE ROW LEVEL SECURITY",
        ("- table users: row level security, forced on its owner too",),
        POSTGRESQL,
    ),
    Edit(
        "GRANT SELECT, UPDATE ON users TO PUBLIC",
        ("- PUBLIC may SELECT, UPDATE on users",),
        POSTGRESQL,
    ),
    Edit(
        "ALTER TABLE users DROP CONSTRAINT users_role",
        ("+ check users_role on users: role IN ('admin', 'operator', 'user')",),
        POSTGRESQL,
    ),
    Edit(
        "ALTER TABLE sessions DROP CONSTRAINT sessions_idempotency",
        ("+ constraint sessions_idempotency on sessions",),
        POSTGRESQL,
    ),
    Edit(
        "ALTER TABLE sessions DROP CONSTRAINT sessions_vm_id_fkey",
        ("+ constraint of vm_id on sessions",),
        POSTGRESQL,
    ),
    Edit(
        "ALTER TABLE users ALTER role SET DEFAULT 'admin'",
        ("- column users.role: default 'admin'::character varying",),
        POSTGRESQL,
    ),
)
REFUSED = (
    Edit("ALTER TABLE vms DROP COLUMN serial_tail", ("+ column vms.serial_tail",)),
    Edit("ALTER TABLE users ADD COLUMN mail TEXT", ("- column users.mail",)),
    Edit("DROP TABLE samples", ("+ table samples",)),
    Edit(
        "ALTER TABLE samples DROP CONSTRAINT samples_pkey",
        ("- primary key of samples: none", "+ primary key of samples: at"),
        POSTGRESQL,
    ),
)


async def edited(url: str, edits: Iterable[Edit]) -> list[str]:
    """Make the edits that this kind of database takes; return the expected differences."""
    kind = "sqlite" if url.startswith("sqlite") else "postgresql"
    ours = [each for each in edits if kind in each.kinds]

    def make(connection: sa.Connection) -> None:
        for each in ours:
            parts = [each.statement] if "TRIGGER" in each.statement else each.statement.split("; ")
            for part in parts:
                connection.exec_driver_sql(part)

    if ours:
        await look(url, make)
    return sorted(line for each in ours for line in each.lines)


async def named(url: str) -> list[str]:
    found = (await check_database(url, with_tools=False))["differences"]
    assert isinstance(found, list)
    return sorted(found)


@run_async
async def test_manual_changes_are_reported_and_repaired_by_migration(store_url: str) -> None:
    assert await named(store_url) == []
    before = await look(store_url, schema)
    # The second edit is part of the third.
    wanted = await edited(store_url, (each for each in MENDED if each is not MENDED[1]))
    assert await named(store_url) == wanted
    assert await migrate(store_url) == (HEAD, HEAD)
    assert await named(store_url) == []
    assert await look(store_url, schema) == before
    assert await named(store_url) == await edited(store_url, ())


@pytest.mark.parametrize("edit", REFUSED, ids=lambda edit: edit.statement)
@run_async
async def test_manual_changes_with_data_are_refused(store_url: str, edit: Edit) -> None:
    wanted = await edited(store_url, (edit,))
    assert await named(store_url) == wanted
    if wanted:
        before = await look(store_url, schema)
        with pytest.raises(SchemaError, match=re.escape(wanted[0])) as refusal:
            await migrate(store_url)
        assert "./inv database.restore" in (refusal.value.hint or "")
        assert await look(store_url, schema) == before


@run_async
async def test_index_that_rows_violate_fails_the_migration(store_url: str) -> None:
    """Two VMs hold one slot, since the unique index was missing."""
    await edited(store_url, (MENDED[1],))
    async with opened(store_url) as store:
        for _ in range(2):
            await store.start(await store.new_user())
        async with store.database.writing() as connection:
            await connection.execute(sa.update(tables.vms).values(slot=2))
    with pytest.raises(MigrationError, match=r"vms_slot_held|vms\.slot"):
        await migrate(store_url)


@pytest.mark.parametrize("revision", ["9999", "0002"])
@run_async
async def test_other_revision_is_reported(store_url: str, revision: str) -> None:
    change = f"UPDATE alembic_version SET version_num = '{revision}'"
    await edited(store_url, (Edit(change, ()),))
    if revision == "9999":
        with pytest.raises(DatabaseUnusable, match="9999, which this release does not know") as no:
            await check_database(store_url, with_tools=False)
        assert "./inv rollback" in (no.value.hint or "")
    else:
        assert await named(store_url) == [f"+ revision {HEAD}", f"- revision {revision}"]


@run_async
async def test_foreign_tables_are_ignored(store_url: str) -> None:
    await edited(store_url, (Edit("CREATE TABLE others (id integer)", ()),))
    assert await named(store_url) == []


@run_async
async def test_a_new_database_has_no_revision(empty_url: str) -> None:
    engine = create_engine(empty_url)
    try:
        assert await schema_revision(engine) is None
    finally:
        await engine.dispose()

"""Problems of a PostgreSQL server are reported before anything depends on it, with a hint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from polydev.controller.database import DatabaseUnusable
from polydev.controller.migrate import migrate
from polydev.controller.migrations import HEAD
from polydev.controller.store import database_check, postgres_backup
from polydev.controller.store.backup_error import BackupError
from tests.databases import PostgresServer
from tests.stores import run_async

pytest_plugins = ["tests.databases"]

HOST = "127.0.0.1"


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[str]:
    name = postgres_server.create()
    yield name
    postgres_server.drop(name)


@run_async
async def test_usable_database_passes(postgres_server: PostgresServer, database: str) -> None:
    url = postgres_server.url(database)
    found = await database_check.check_database(url, with_tools=True)
    assert found["database"] == f"PostgreSQL, {database} at {postgres_server.folder} as owner"
    assert (found["revision"], found["expected"], found["differences"]) == (None, HEAD, [])
    await migrate(url)
    assert (await database_check.check_database(url, with_tools=True))["revision"] == HEAD


@pytest.mark.parametrize(
    ("address", "said", "hint"),
    [
        (f"me:horse@{HOST}:1/data", "refused", "check that the server runs"),
        ("me:horse@no.invalid/data", "resolve", "host name"),
        ("owner:horse@/none?host={folder}", "does not exist", "create the database"),
        ("owner:horse@/postgres?host={folder}&sslmode=bad", "sslmode", None),
        ("owner:horse@/postgres?host={folder}&nonsense=1", "nonsense", None),
        ("guest:horse@{address}/postgres", "password authentication failed", "user and password"),
        ("guest@{address}/postgres", "no password supplied", "add the password"),
        ("tls:horse@{address}/postgres", "no encryption", "sslmode=require"),
        (
            "owner:horse@{address}/postgres?sslmode=require",
            "does not support SSL",
            "does not support TLS",
        ),
        ("nobody:horse@{address}/postgres", "no pg_hba.conf entry", "allow connections"),
    ],
)
@run_async
async def test_connection_errors_have_hints(
    postgres_server: PostgresServer, address: str, said: str, hint: str | None
) -> None:
    where = address.format(folder=postgres_server.folder, address=postgres_server.address)
    with pytest.raises(DatabaseUnusable, match=said) as failure:
        await database_check.check_database(f"postgresql+psycopg://{where}", with_tools=False)
    assert "horse" not in failure.value.message
    assert hint is None or hint in (failure.value.hint or "")


@run_async
async def test_role_without_create_permission_is_refused(
    postgres_server: PostgresServer, database: str
) -> None:
    postgres_server.do("DROP ROLE IF EXISTS reader")
    postgres_server.do("CREATE ROLE reader LOGIN")
    url = postgres_server.url(database).replace("owner@", "reader@")
    with pytest.raises(
        DatabaseUnusable, match="reader may not create tables in schema public"
    ) as no:
        await database_check.check_database(url, with_tools=False)
    assert no.value.hint == "as the schema's owner, run GRANT CREATE ON SCHEMA public TO reader"


@run_async
async def test_foreign_table_with_same_name_is_refused(
    postgres_server: PostgresServer, database: str
) -> None:
    postgres_server.do("CREATE TABLE users (id integer)", database)
    with pytest.raises(DatabaseUnusable, match="`users` that is not the controller's"):
        await database_check.check_database(postgres_server.url(database), with_tools=False)


@run_async
async def test_schema_on_search_path_is_used(
    postgres_server: PostgresServer, database: str
) -> None:
    postgres_server.do("CREATE TABLE users (id integer)", database)
    url = f"{postgres_server.url(database)}&options=-csearch_path%3Down"
    with pytest.raises(DatabaseUnusable, match="no schema on the search path"):
        await database_check.check_database(url, with_tools=False)
    postgres_server.do("CREATE SCHEMA own", database)
    await database_check.check_database(url, with_tools=False)
    await migrate(url)
    assert (await database_check.check_database(url, with_tools=False))["revision"] == HEAD


@run_async
async def test_database_of_newer_revision_is_refused(
    postgres_server: PostgresServer, database: str
) -> None:
    url = postgres_server.url(database)
    await migrate(url)
    postgres_server.do("UPDATE alembic_version SET version_num = '9999'", database)
    with pytest.raises(DatabaseUnusable, match="revision 9999, which this release does not know"):
        await database_check.check_database(url, with_tools=False)


@run_async
async def test_missing_or_old_postgres_tools_are_refused(
    postgres_server: PostgresServer, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_backup, "PROGRAMS", tmp_path)
    for version in ("9.6", "11"):
        folder = tmp_path / version / "bin"
        folder.mkdir(parents=True)
        for tool in database_check.TOOLS:
            program = folder / tool
            program.write_text(f"#!/bin/sh\necho '{tool} (PostgreSQL) {version}.4'\n")
            program.chmod(0o755)
    with pytest.raises(DatabaseUnusable, match="has version 11 and the server"):
        await database_check.check_database(postgres_server.url(database), with_tools=True)
    monkeypatch.setattr(postgres_backup, "PROGRAMS", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackupError, match="is not installed") as missing:
        await database_check.check_database(postgres_server.url(database), with_tools=True)
    assert "postgresql-client" in (missing.value.hint or "")

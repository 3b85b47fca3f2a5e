"""Copying SQLite to PostgreSQL: the same rows, sequences that continue, all of it or nothing."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from polydev.controller.credential_encryption import Keyring
from polydev.controller.database import create_engine
from polydev.controller.entities import Caller
from polydev.controller.migrate import migrate
from polydev.controller.migrations import HEAD
from polydev.controller.settings import Quotas
from polydev.controller.store import backup as backup_module
from polydev.controller.store import (
    database_check,
    postgres_access,
    schema_check,
    sqlite_to_postgres,
    tables,
)
from polydev.controller.store.alerts import Alerts
from polydev.controller.store.backup import backup, restore
from polydev.controller.store.backup_error import BackupError
from polydev.controller.store.credentials import CredentialStore
from polydev.controller.store.host_samples import HostSamples
from polydev.controller.store.sign_ins import SignIns, Tickets
from polydev.controller.store.usage import Usage
from polydev.controller.store.webhook_queue import Subscription, WebhookQueue
from polydev.controller.usage_accounting import CounterReading
from polydev.controller.webhook_events import EVENT_TYPES
from tests.databases import PostgresServer, sqlite_url
from tests.stores import Store, copy_migrated_database, opened, run_async

pytest_plugins = ["tests.databases"]

FIGURES = {"cpu": 1 / 3, "text": "zwölf \0 \U0001f600", "none": None, "list": [1, True]}


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """An address of a database that was never used."""
    name = postgres_server.create()
    yield postgres_server.url(name)
    postgres_server.drop(name)


@asynccontextmanager
async def filled(folder: Path) -> AsyncIterator[Store]:
    """A SQLite database with rows in every table, and deleted rows whose numbers were used."""
    url = sqlite_url(folder)
    await migrate(url)
    async with opened(url) as store:
        user, other = await store.new_user(), await store.new_user()
        await store.tokens.create(user, "laptop")
        session = await store.start_ready(user)
        over = await store.start(other, key="one")
        await store.sessions.apply(over.id, "terminate")
        sealed = CredentialStore(store.database, Keyring((b"k" * 32,)), store.clock)
        await sealed.store(user, "claude", bytes(range(256)))
        reading = CounterReading(session.vm_id, store.clock(), False, 1 / 3, 2**40, None)
        await Usage(store.database, Quotas()).count([reading])
        caller = Caller(user, "user", "jwt")
        await SignIns(store.database, store.clock).create(caller, 3600)
        await Tickets(store.database, store.clock).create("viewer", caller, 30, session.id)
        await HostSamples(store.database).add(store.clock(), FIGURES)
        await Alerts(store.database, store.clock).raise_("cpu", "host", "warning", "busy", 71.5)
        webhooks = WebhookQueue(store.database, store.clock)
        await webhooks.queue([Subscription("front", EVENT_TYPES)], 100)
        await webhooks.mark_gone("front", "0" * 64)
        await store.sessions.add_news(session.id, "note", {"last": True})
        async with store.database.writing() as connection:
            news = tables.session_news
            last = sa.select(sa.func.max(news.c.number)).scalar_subquery()
            await connection.execute(sa.delete(news).where(news.c.number == last))
        yield store


async def rows_of(url: str) -> dict[str, list[Any]]:
    engine = create_engine(url)
    try:
        async with engine.connect() as connection:
            return {
                table.name: sorted(map(repr, (await connection.execute(sa.select(table))).all()))
                for table in tables.metadata.sorted_tables
            }
    finally:
        await engine.dispose()


async def copy_without_rows(folder: Path) -> Path:
    """Make a backup of a migrated SQLite database that has no rows."""
    copy = folder / "copy"
    copy_migrated_database(folder / "controller.sqlite3")
    await backup(sqlite_url(folder), copy)
    return copy


@run_async
async def test_all_rows_are_copied_and_sequences_continue(
    tmp_path: Path, postgres_url: str
) -> None:
    copy = tmp_path / "copy"
    async with filled(tmp_path) as store:
        used = await store.sessions.latest_news_number() + 1
        await backup(sqlite_url(tmp_path), copy)
    before, content = await rows_of(sqlite_url(tmp_path)), copy.read_bytes()
    assert all(before.values()), "every table has rows"
    said = await restore(postgres_url, copy)
    assert said["rows"] == {name: len(rows) for name, rows in before.items()}
    assert (said["database"], said["revision"]) == ("postgresql", HEAD)
    assert await rows_of(postgres_url) == before
    assert copy.read_bytes() == content
    async with opened(postgres_url) as store:
        (session, *_) = await store.sessions.list()
        await store.sessions.add_news(session.id, "note", {})
        assert await store.sessions.latest_news_number() == used + 1, "no number is used twice"
        assert (await database_check.check_database(postgres_url, with_tools=False))[
            "differences"
        ] == []


@run_async
async def test_existing_rows_are_reported_and_replaced(tmp_path: Path, postgres_url: str) -> None:
    copy = tmp_path / "copy"
    assert (await database_check.check_database(postgres_url, with_tools=False))["occupied"] == []
    await migrate(postgres_url)
    assert (await database_check.check_database(postgres_url, with_tools=False))["occupied"] == []
    async with opened(postgres_url) as store:
        former = await store.new_user()
    assert (await database_check.check_database(postgres_url, with_tools=False))["occupied"] == [
        "slots",
        "users",
    ]
    async with filled(tmp_path):
        await backup(sqlite_url(tmp_path), copy)
    await restore(postgres_url, copy)
    async with opened(postgres_url) as store:
        assert await store.users.find(former) is None


@run_async
async def test_backup_of_older_release_is_migrated(tmp_path: Path, postgres_url: str) -> None:
    copy = tmp_path / "copy"
    copy_migrated_database(tmp_path / "controller.sqlite3")
    with closing(sqlite3.connect(tmp_path / "controller.sqlite3")) as old, old:
        old.execute("INSERT INTO users VALUES ('1', 'user', '2026-01-01 12:00:00.000000', 'Ada')")
        for name in (
            *("credentials", "tickets", "sign_ins", "usage", "usage_readings"),
            *("webhook_deliveries", "webhook_events", "webhook_gone", "credential_events"),
        ):
            old.execute(f"DROP TABLE {name}")
        for name in (
            *("login", "login_detail", "recipient", "stored_credentials", "credentials_sha256"),
            *("credentials_at", "wiped_at", "completes_at"),
        ):
            old.execute(f"ALTER TABLE sessions DROP COLUMN {name}")
        for name in ("template", "boots_because", "receipt", "pooled", "used_at", "paused_at"):
            old.execute(f"ALTER TABLE vms DROP COLUMN {name}")
        old.execute("UPDATE alembic_version SET version_num = '0002'")
    await backup(sqlite_url(tmp_path), copy)
    said = await restore(postgres_url, copy)
    assert (said["revision"], said["migratedFrom"]) == (HEAD, "0002")
    async with opened(postgres_url) as store:
        assert [(user.id, user.name) for user in await store.users.list()] == [("1", "Ada")]


@run_async
async def test_rejected_row_changes_nothing(tmp_path: Path, postgres_url: str) -> None:
    """PostgreSQL refuses texts that SQLite accepts: too long ones, and those with NUL bytes."""
    copy_migrated_database(tmp_path / "controller.sqlite3")
    await migrate(postgres_url)
    async with opened(postgres_url) as store:
        former = await store.new_user()
    before = await rows_of(postgres_url)
    for number, name in enumerate(("x" * 201, "a\0b")):
        copy = tmp_path / f"copy-{number}"
        await backup(sqlite_url(tmp_path), copy)
        with closing(sqlite3.connect(copy)) as bad, bad:
            row = ("1", "user", "2026-01-01 12:00:00.000000", name)
            bad.execute("INSERT INTO users (id, role, created_at, name) VALUES (?, ?, ?, ?)", row)
        with pytest.raises(BackupError, match="rejects a row of users: ") as failure:
            await restore(postgres_url, copy)
        assert name not in failure.value.message
        assert await rows_of(postgres_url) == before
    assert former in str(before["users"])


@run_async
async def test_rows_altered_during_copy_are_detected_and_rolled_back(
    postgres_server: PostgresServer,
    tmp_path: Path,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = tmp_path / "copy"
    await migrate(postgres_url)
    # These would drop the trigger, which stands for one that is added later.
    monkeypatch.setattr(schema_check, "repair_schema", lambda _: None)
    monkeypatch.setattr(postgres_access, "close_access", lambda _: None)
    name = sa.make_url(postgres_url).database
    assert name
    postgres_server.do(
        "CREATE FUNCTION later() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.name := 'other'; RETURN NEW; END $$",
        name,
    )
    trigger = "CREATE TRIGGER later BEFORE INSERT ON tokens FOR EACH ROW EXECUTE FUNCTION later()"
    postgres_server.do(trigger, name)
    async with filled(tmp_path):
        await backup(sqlite_url(tmp_path), copy)
    with pytest.raises(BackupError, match="tokens: 1 rows in PostgreSQL differ from the 1 rows"):
        await restore(postgres_url, copy)
    assert not any((await rows_of(postgres_url)).values())


@run_async
async def test_database_in_use_is_refused(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup_module, "CLOSING_SECONDS", 0.0)
    copy = await copy_without_rows(tmp_path)
    await migrate(postgres_url)
    async with opened(postgres_url) as store, store.database.reading():
        with pytest.raises(BackupError, match="a controller is using the database"):
            await restore(postgres_url, copy)


@run_async
async def test_restore_waits_for_closing_connections(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup_module, "CLOSING_SECONDS", 60.0)
    copy = await copy_without_rows(tmp_path)
    await migrate(postgres_url)
    counting = sa.text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND query LIKE :counting"
    ).bindparams(counting="SELECT count(*) FROM pg_stat_activity%")
    async with opened(postgres_url) as store:
        restoring = asyncio.create_task(restore(postgres_url, copy))
        counted = False
        while not counted:
            async with store.database.reading() as connection:
                counted = bool((await connection.execute(counting)).scalar_one())
        await store.database.close()
        assert (await restoring)["database"] == "postgresql"


@run_async
async def test_large_databases_are_copied_in_parts(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_to_postgres, "ROWS_AT_ONCE", 7)
    copy = tmp_path / "copy"
    copy_migrated_database(tmp_path / "controller.sqlite3")
    async with opened(sqlite_url(tmp_path)) as store:
        users = {await store.new_user() for _ in range(30)}
        await backup(sqlite_url(tmp_path), copy)
    await asyncio.wait_for(restore(postgres_url, copy), 60)
    async with opened(postgres_url) as store:
        assert {user.id for user in await store.users.list()} == users

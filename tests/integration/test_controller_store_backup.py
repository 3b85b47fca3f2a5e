"""Copies of both databases: complete, consistent, and restored completely or not at all."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from polydev.controller.migrate import migrate
from polydev.controller.migrations import HEAD
from polydev.controller.store import postgres_backup, sqlite_backup
from polydev.controller.store.backup import backup, require_restorable, restore
from polydev.controller.store.backup_error import BackupError
from tests.databases import PostgresServer, sqlite_url
from tests.disk import recorded
from tests.stores import Store, opened, run_async

pytest_plugins = ["tests.databases"]


async def users_of(url: str) -> list[str]:
    async with opened(url) as store:
        return [user.id for user in await store.users.list()]


def backups_in(folder: Path) -> list[str]:
    """Names of backups in the folder, partial ones included."""
    return [path.name for path in folder.glob("*copy*")]


@run_async
async def test_restore_returns_what_was_backed_up(store_url: str, tmp_path: Path) -> None:
    file = tmp_path / "copy"
    async with opened(store_url) as store:  # in use meanwhile
        session = await store.start_ready(await store.new_user())
        news = await store.sessions.news(session.id)
        said = await backup(store_url, file)
        await store.sessions.apply(session.id, "terminate")
        later = await store.new_user()
    assert said == {
        "file": str(file),
        "database": store_url.partition("+")[0],
        "revision": HEAD,
        "bytes": file.stat().st_size,
    }
    assert file.stat().st_mode & 0o777 == 0o600
    assert backups_in(tmp_path) == ["copy"]
    restored = await restore(store_url, file)
    assert restored["revision"] == HEAD
    assert isinstance(restored["rows"], dict)
    assert (restored["rows"]["users"], restored["rows"]["sessions"]) == (1, 1)
    async with opened(store_url) as store:
        assert await store.sessions.get(session.id) == session
        assert await store.sessions.news(session.id) == news
        assert await store.users.find(later) is None
        # New rows get numbers that were not used before.
        await store.sessions.add_news(session.id, "note", {})
        assert await store.sessions.latest_news_number() > news[-1].number


@run_async
async def test_backup_is_consistent_while_others_write(store_url: str, tmp_path: Path) -> None:
    """Sessions start during the backup, which has the VM of each of its sessions."""
    file = tmp_path / "copy"
    async with opened(store_url, slots=30) as store:
        copying = asyncio.create_task(backup(store_url, file))
        await asyncio.gather(*(start_session(store) for _ in range(30)))
        await copying
    await restore(store_url, file)
    async with opened(store_url, slots=30) as store:
        sessions = await store.sessions.list()
        assert {each.vm_id for each in sessions} == {vm.id for vm in await store.vms.list()}


async def start_session(store: Store) -> None:
    await store.start(await store.new_user())


@run_async
async def test_restore_is_refused_while_database_is_in_use(store_url: str, tmp_path: Path) -> None:
    file = tmp_path / "copy"
    async with opened(store_url) as store:
        await backup(store_url, file)
        user = await store.new_user()
        with pytest.raises(BackupError) as caught:
            await restore(store_url, file)
        assert "stop master-controller.socket master-controller.service" in (
            caught.value.hint or ""
        )
        assert [each.id for each in await store.users.list()] == [user]
    await restore(store_url, file)
    assert await users_of(store_url) == []


@run_async
async def test_backup_does_not_overwrite_a_file(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in (sqlite_backup, postgres_backup):
        monkeypatch.setattr(each, "copy_to", lambda *_: pytest.fail("it copies for nothing"))
    file = tmp_path / "copy"
    file.write_text("mine")
    with pytest.raises(BackupError, match="exists"):
        await backup(store_url, file)
    assert file.read_text() == "mine"
    with pytest.raises(BackupError, match=r"cannot write .*: No such file or directory"):
        await backup(store_url, tmp_path / "nowhere" / "copy")


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("text", "is not a backup of a database"),
        ("nothing", "cannot read .*: No such file or directory"),
        ("half", "damaged|pg_restore failed"),
        # For PostgreSQL, which accepts SQLite backups, a bare SQLite header is a damaged one.
        ("other", "is a backup of|is damaged"),
    ],
)
@run_async
async def test_restore_of_invalid_file_changes_nothing(
    store_url: str, tmp_path: Path, what: str, told: str
) -> None:
    file, bad = tmp_path / "copy", tmp_path / "bad"
    async with opened(store_url) as store:
        before = [await store.new_user() for _ in range(200)]
        await backup(store_url, file)
    whole = file.read_bytes()
    other = b"PGDMP" if store_url.startswith("sqlite") else b"SQLite format 3\0"
    if what != "nothing":
        bad.write_bytes({"text": b"hello", "half": whole[: len(whole) // 2]}.get(what, other))
    for attempt in (require_restorable, restore):
        with pytest.raises(BackupError, match=told):
            await attempt(store_url, bad)
    assert sorted(await users_of(store_url)) == sorted(before)


@run_async
async def test_backup_of_newer_revision_is_refused(store_url: str, tmp_path: Path) -> None:
    file = tmp_path / "copy"
    async with opened(store_url) as store:
        user = await store.new_user()
        await backup(store_url, file)
        async with store.database.writing() as connection:
            await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(BackupError, match="the database is at revision 9999"):
            await backup(store_url, tmp_path / "other")
    newer = tmp_path / "newer"
    if store_url.startswith("sqlite"):
        newer.write_bytes(file.read_bytes())
        with closing(sqlite3.connect(newer)) as copy, copy:
            copy.execute("UPDATE alembic_version SET version_num = '9999'")
    else:
        await asyncio.to_thread(postgres_backup.copy_to, store_url, newer)
    for attempt in (require_restorable, restore):
        with pytest.raises(BackupError, match="is at revision 9999, which this release does not"):
            await attempt(store_url, newer)
    assert (await require_restorable(store_url, file))["revision"] == HEAD
    await restore(store_url, file)
    assert await users_of(store_url) == [user]


@run_async
async def test_backup_of_unmigrated_database_is_refused(empty_url: str, tmp_path: Path) -> None:
    with pytest.raises(BackupError, match=r"never migrated|there is no database"):
        await backup(empty_url, tmp_path / "copy")
    assert backups_in(tmp_path) == []


@run_async
async def test_restore_into_empty_database(
    store_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    file = tmp_path / "copy"
    async with opened(store_url) as store:
        user = await store.new_user()
    await backup(store_url, file)
    if store_url.startswith("sqlite"):
        await restore(f"sqlite+aiosqlite:///{tmp_path / 'new.sqlite3'}", file)
        assert await users_of(f"sqlite+aiosqlite:///{tmp_path / 'new.sqlite3'}") == [user]
        return
    server = request.getfixturevalue("postgres_server")
    name = server.create()
    try:
        await restore(server.url(name), file)
        assert await users_of(server.url(name)) == [user]
    finally:
        server.drop(name)


@run_async
async def test_restore_keeps_foreign_tables(store_url: str, tmp_path: Path) -> None:
    """PostgreSQL may be shared; SQLite's file is the controller's own and is replaced."""
    file = tmp_path / "copy"
    async with opened(store_url) as store:
        async with store.database.writing() as connection:
            await connection.execute(sa.text("CREATE TABLE others AS SELECT 1 AS number"))
        await backup(store_url, file)
        async with store.database.writing() as connection:
            await connection.execute(sa.text("UPDATE others SET number = 2"))
    await restore(store_url, file)
    async with opened(store_url) as store, store.database.reading() as connection:
        found = await connection.execute(sa.text("SELECT number FROM others"))
        assert found.scalar_one() == (1 if store_url.startswith("sqlite") else 2)


@pytest.mark.parametrize("damage", ["INSERT INTO tokens", "an index"])
@run_async
async def test_restore_of_damaged_backup_is_refused(tmp_path: Path, damage: str) -> None:
    """For SQLite only: pg_restore detects damage itself, and PostgreSQL checks every key."""
    url, file = sqlite_url(tmp_path), tmp_path / "copy"
    await migrate(url)
    async with opened(url) as store:
        user = await store.new_user()
        await backup(url, file)
    with closing(sqlite3.connect(file)) as copy, copy:
        if damage == "an index":
            copy.execute("CREATE INDEX users_role ON users (role)")
        else:
            copy.execute(
                "INSERT INTO tokens (id, user_id, name, sha256, created_at)"
                " VALUES ('1', 'nobody', 'n', 's', '2026-01-01')"
            )
    if damage == "an index":
        # This makes the id in the table differ from the id in the index.
        data = file.read_bytes()
        file.write_bytes(data.replace(user.encode(), user[::-1].encode(), 1))
    with pytest.raises(BackupError, match="is damaged"):
        await restore(url, file)
    assert await users_of(url) == [user]


@run_async
async def test_failed_restore_changes_nothing(
    postgres_server: PostgresServer, migrated_template: str, tmp_path: Path
) -> None:
    name = postgres_server.create(migrated_template)
    url, file = postgres_server.url(name), tmp_path / "copy"
    try:
        async with opened(url) as store:
            await backup(url, file)
            user = await store.new_user()
        script = await asyncio.to_thread(postgres_backup.script_of, file, tmp_path)
        text = script.read_text()
        middle = text.index("COPY public.users")
        script.write_text(f"{text[:middle]}SELECT 1 / 0;\n{text[middle:]}")
        with pytest.raises(BackupError, match="division by zero"):
            await asyncio.to_thread(postgres_backup.put_back, url, script)
        assert await users_of(url) == [user]
    finally:
        postgres_server.drop(name)


@run_async
async def test_backup_is_synced_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, file = sqlite_url(tmp_path), tmp_path / "copy"
    await migrate(url)
    done = recorded(monkeypatch)
    await backup(url, file)
    assert done[0].startswith(f"sync {tmp_path}/.copy.")
    assert done[1:] == [f"name {file}", f"sync {tmp_path}"]

"""Stored credentials on both databases: always sealed, and complete under concurrent writes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from polydev.controller.credential_encryption import Keyring
from polydev.controller.database import create_engine
from polydev.controller.settings import SessionLimits
from polydev.controller.store import postgres_backup, tables
from polydev.controller.store.backup import backup, restore
from polydev.controller.store.credentials import CredentialStore, ResealCounts
from polydev.controller.store.transactions import Database
from polydev.errors import CredentialsLocked, CredentialsNotFound, SessionExpired, UserNotFound
from polydev.processes import run
from tests.stores import Clock, Store, opened, run_async

pytest_plugins = ["tests.databases"]

OLD, NEW = b"o" * 32, b"n" * 32
MARKER = b"marker-of-a-secret-that-nobody-sees"
UNKNOWN = "5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01"
MANY = SessionLimits(per_user=50)


def credentials_of(store: Store, *keys: bytes) -> CredentialStore:
    return CredentialStore(store.database, Keyring(keys or (OLD,)), store.clock)


def files_in(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@asynccontextmanager
async def separate_store(url: str, *keys: bytes) -> AsyncIterator[CredentialStore]:
    """The store as another process has it: with its own connections."""
    database = Database(create_engine(url))
    try:
        yield CredentialStore(database, Keyring(keys or (OLD,)), Clock())
    finally:
        await database.close()


@run_async
async def test_stored_credentials_are_returned_with_timestamps(store_url: str) -> None:
    async with opened(store_url) as store:
        kept, user = credentials_of(store), await store.new_user()
        stored, is_new = await kept.store(user, "claude", bytes(range(256)))
        assert is_new
        assert await kept.get(user, "claude") == (stored, bytes(range(256)))
        assert stored.created_at == stored.updated_at == store.clock.at
        store.clock.pass_seconds(5)
        session = await store.start_ready(user)
        again, is_new = await kept.store(user, "claude", b"", session.id)
        assert not is_new
        assert (again.created_at, again.updated_at) == (stored.created_at, store.clock.at)
        assert await kept.get(user, "claude") == (again, b"")
        assert await kept.list(user) == [again]
        with pytest.raises(UserNotFound):
            await kept.store(UNKNOWN, "claude", b"x")
        await kept.remove(user, "claude")
        with pytest.raises(CredentialsNotFound):
            await kept.remove(user, "claude")


@run_async
async def test_database_and_backup_contain_no_plain_credentials(
    store_url: str, tmp_path: Path
) -> None:
    """Checks files of a database in use, its dump, its backup, and the news of a session."""
    async with opened(store_url) as store:
        kept, user = credentials_of(store), await store.new_user()
        session = await store.start_ready(user)
        await store.sessions.apply(session.id, "oauth_started")
        await kept.store(user, "codex", MARKER * 1000)
        await kept.store(user, "claude", MARKER, session.id)
        await backup(store_url, tmp_path / "copy")
        news = await store.sessions.news(session.id)
        assert [each.data for each in news[-3:-1]] == [
            {"state": "oauth_pending"},
            {"state": "authenticated"},
        ]
        assert MARKER.decode() not in str(news)
        files = files_in(tmp_path)
        written = [json.dumps([dict(each.data) for each in news]).encode(), *files.values()]
        if store_url.startswith("postgresql"):
            url = postgres_backup.libpq_url(store_url)
            dumps = [
                run(["pg_dump", *how, f"--dbname={url}"]).stdout.encode()
                for how in ([], ["--inserts"])
            ]
            assert all(b"credentials" in dump for dump in dumps)
            written += dumps
        else:
            assert set(files) >= {"controller.sqlite3", "controller.sqlite3-wal", "copy"}
    for text in written:
        for form in (MARKER, MARKER.hex().encode()):
            assert form not in text


@run_async
async def test_restore_brings_back_credentials(store_url: str, tmp_path: Path) -> None:
    async with opened(store_url) as store:
        kept, user = credentials_of(store), await store.new_user()
        stored = await kept.store(user, "claude", MARKER)
        await backup(store_url, tmp_path / "copy")
        await kept.store(user, "claude", b"later")
        await kept.store(user, "gemini", b"later")
    done = await restore(store_url, tmp_path / "copy")
    assert isinstance(done["rows"], dict)
    assert done["rows"]["credentials"] == 1
    async with opened(store_url) as store:
        assert await credentials_of(store).get(user, "claude") == (stored[0], MARKER)
        assert len(await credentials_of(store).list(user)) == 1
        with pytest.raises(CredentialsLocked):
            await credentials_of(store, NEW).get(user, "claude")


@run_async
async def test_key_rotation_changes_only_the_key(store_url: str) -> None:
    providers: tuple[str, ...] = ("claude", "codex", "gemini")
    async with opened(store_url) as store:
        old, both, new = (credentials_of(store, *keys) for keys in ((OLD,), (NEW, OLD), (NEW,)))
        lost = credentials_of(store, b"l" * 32)
        users = [await store.new_user() for _ in range(5)]
        made = {
            (user, provider): (await old.store(user, provider, f"{user} {provider}".encode()))[0]
            for user in users
            for provider in providers
        }
        await lost.store(await store.new_user(), "claude", b"x")
        await new.store(await store.new_user(), "claude", b"x")
        store.clock.pass_seconds(5)
        assert await both.seal_anew() == ResealCounts(sealed=15, current=1, locked=1)
        for (user, provider), stored in made.items():
            assert await new.get(user, provider) == (stored, f"{user} {provider}".encode())
        with pytest.raises(CredentialsLocked):
            await old.get(users[0], "claude")
        assert await both.seal_anew() == ResealCounts(sealed=0, current=16, locked=1)


@run_async
async def test_key_rotation_keeps_credentials_stored_meanwhile(store_url: str) -> None:
    """Credentials stored or removed during the rotation are so after it."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(opened(store_url))
        users = [await store.new_user() for _ in range(12)]
        for user in users:
            await credentials_of(store).store(user, "claude", b"before")
        writer = await stack.enter_async_context(separate_store(store_url, NEW, OLD))
        rotating = asyncio.create_task(credentials_of(store, NEW, OLD).seal_anew())
        for number, user in enumerate(users):
            if number % 3 == 0:
                await writer.store(user, "claude", b"after")
            elif number % 3 == 1:
                await writer.remove(user, "claude")
        done = await rotating
        assert done.locked == 0
        reader = credentials_of(store, NEW)
        for number, user in enumerate(users):
            if number % 3 == 1:
                assert await reader.list(user) == []
            else:
                expected = b"after" if number % 3 == 0 else b"before"
                assert (await reader.get(user, "claude"))[1] == expected


@run_async
async def test_one_of_concurrent_stores_is_reported_as_new(store_url: str) -> None:
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(opened(store_url))
        writers = [await stack.enter_async_context(separate_store(store_url)) for _ in range(3)]
        user = await store.new_user()
        done = await asyncio.gather(
            *(
                writers[number % 3].store(user, "claude", f"{number}".encode())
                for number in range(12)
            )
        )
        assert sorted(is_new for _, is_new in done) == [False] * 11 + [True]
        assert (await credentials_of(store).get(user, "claude"))[1] in [
            f"{number}".encode() for number in range(12)
        ]


@run_async
async def test_storing_credentials_and_session_end_do_not_deadlock(store_url: str) -> None:
    """There is no deadlock, and a session goes on exactly if its credentials are stored."""
    async with (
        opened(store_url, slots=20, limits=MANY) as store,
        separate_store(store_url) as writer,
    ):
        user = await store.new_user()
        for _ in range(8):
            session = await store.start_ready(user)
            await store.sessions.apply(session.id, "oauth_started")
            await credentials_of(store).remove_all(user)
            stored, ended, *_ = await asyncio.gather(
                writer.store(user, "claude", b"x", session.id),
                store.sessions.apply(session.id, "terminate"),
                store.vms.checked(session.vm_id, ok=True),
                store.start(user),
                return_exceptions=True,
            )
            assert not isinstance(ended, BaseException)
            states = [each.data.get("state") for each in await store.sessions.news(session.id)]
            is_kept = bool(await credentials_of(store).list(user))
            assert is_kept == ("authenticated" in states)
            assert is_kept != isinstance(stored, SessionExpired)
            for each in await store.sessions.list(user, live_only=True):
                await store.sessions.apply(each.id, "terminate")
            for vm in await store.vms.held():
                await store.vms.released(vm.id)


@run_async
async def test_credentials_survive_deletion_of_their_session(store_url: str) -> None:
    async with opened(store_url) as store:
        kept, user = credentials_of(store), await store.new_user()
        session = await store.start_ready(user)
        await kept.store(user, "claude", MARKER, session.id)
        async with store.database.writing() as connection:
            news = tables.session_news
            await connection.execute(sa.delete(news).where(news.c.session_id == session.id))
            of_it = tables.sessions.c.id == session.id
            await connection.execute(sa.delete(tables.sessions).where(of_it))
        found, plain = await kept.get(user, "claude")
        assert (found.session_id, plain) == (None, MARKER)

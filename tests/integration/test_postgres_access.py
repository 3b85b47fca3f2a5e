"""PostgreSQL whose defaults grant all to other roles, as Supabase's do: our tables stay ours."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from polydev.controller import health
from polydev.controller.database import create_engine
from polydev.controller.health import Health
from polydev.controller.migrate import MIGRATIONS, migrate
from polydev.controller.migrations import HEAD
from polydev.controller.store import transactions
from polydev.controller.store.backup import backup, restore
from polydev.controller.store.postgres_access import exposed_to, known_tables
from polydev.controller.store.session_changes import add_news, locked_session
from polydev.controller.store.transactions import Database
from tests.databases import PostgresServer, until_lock_awaited
from tests.stores import opened, run_async

pytest_plugins = ["tests.databases"]

DEADLOCK_TIMEOUT_SECONDS = 1.5  # PostgreSQL's own is 1 s
# For what a busy machine may take longer to do than the product waits for it.
PATIENCE_SECONDS = 120
ROLES = ("anon", "authenticated", "service_role")
GRANTS = "TO anon, authenticated, service_role"
# In a comment of Supabase's set-up: "Grant all privileges to the API roles by default".
DEFAULTS = (
    f"GRANT USAGE ON SCHEMA public {GRANTS}",
    *(
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON {what} {GRANTS}"
        for what in ("TABLES", "SEQUENCES", "FUNCTIONS")
    ),
)
NEWER = f'''
import sqlalchemy as sa
from alembic import op

revision = "newer"
down_revision = "{HEAD}"


def upgrade() -> None:
    op.create_table(
        "newer",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.String(36), sa.ForeignKey("users.id")),
    )
'''


def connected(url: str, role: str) -> psycopg.Connection[Any]:
    address = sa.make_url(url)
    where = f"host={address.query['host']} dbname={address.database} user={role}"
    return psycopg.connect(where, autocommit=True)


def execute(url: str, *statements: str, role: str = "owner") -> None:
    with connected(url, role) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@pytest.fixture
def supabase(postgres_server: PostgresServer) -> Iterator[str]:
    """An empty database with Supabase's roles and default privileges."""
    name = postgres_server.create()
    url = postgres_server.url(name)
    for role in ROLES:
        make = f"CREATE ROLE {role} LOGIN {'BYPASSRLS' if role == 'service_role' else ''}"
        exists = f"SELECT FROM pg_roles WHERE rolname = '{role}'"
        execute(url, f"DO $$ BEGIN IF NOT EXISTS ({exists}) THEN {make}; END IF; END $$")
    execute(url, *DEFAULTS)
    yield url
    postgres_server.drop(name)


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """The migrations of a later release."""
    folder = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, folder)
    (folder / "versions/newer.py").write_text(NEWER)
    return folder


async def exposed(url: str) -> dict[str, str]:
    engine = create_engine(url)
    try:
        async with engine.connect() as connection:
            return await exposed_to(connection)
    finally:
        await engine.dispose()


def assert_closed(url: str, *more: str) -> None:
    """Check that every operation of each role on each of our tables is refused."""
    engine = sa.create_engine(url)
    inspector = sa.inspect(engine)
    tried = ["SELECT nextval('session_news_number_seq')", "SELECT nextval('alerts_id_seq')"]
    for table in (*known_tables(), *more):
        column = inspector.get_columns(table)[0]["name"]
        tried += [
            f"SELECT * FROM {table}",
            f"INSERT INTO {table} DEFAULT VALUES",
            f"UPDATE {table} SET {column} = NULL",
            f"DELETE FROM {table}",
            f"TRUNCATE {table} CASCADE",
        ]
    engine.dispose()
    for role in ROLES:
        with connected(url, role) as connection:
            for statement in tried:
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement.encode())


@run_async
async def test_other_roles_have_no_access_to_our_tables(supabase: str) -> None:
    execute(supabase, "CREATE TABLE others (id integer)")
    await migrate(supabase)
    assert_closed(supabase)
    assert await exposed(supabase) == {}
    # Tables of others keep their privileges.
    execute(supabase, "INSERT INTO others VALUES (1)", role="anon")


@run_async
async def test_tables_of_later_migrations_are_closed(supabase: str, newer: Path) -> None:
    await migrate(supabase)
    await migrate(supabase, newer)
    assert_closed(supabase, "newer")
    execute(supabase, "GRANT ALL ON newer TO anon")
    assert list(await exposed(supabase)) == ["anon"], "its tables are known by their mark"


@run_async
async def test_migration_closes_open_tables(supabase: str) -> None:
    await migrate(supabase)
    execute(
        supabase,
        *(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY" for table in known_tables()),
        f"GRANT ALL ON ALL TABLES IN SCHEMA public {GRANTS}",
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public {GRANTS}",
        "GRANT SELECT (id) ON users TO PUBLIC",
    )
    assert list(await exposed(supabase)) == ["PUBLIC", *ROLES]
    async with opened(supabase) as store:  # the release before serves meanwhile
        session = await store.start(await store.new_user())
        async with store.database.writing() as connection:
            await connection.execute(sa.text("SELECT 1"))
        assert await migrate(supabase) == (HEAD, HEAD)
        assert (await store.sessions.get(session.id)).id == session.id
        await store.sessions.add_news(session.id, "note", {})
    assert_closed(supabase)
    assert await exposed(supabase) == {}


@pytest.mark.parametrize(
    ("grant", "said"),
    [
        ("GRANT SELECT ON users TO anon", "SELECT on users"),
        ("GRANT UPDATE (role) ON users TO anon", "UPDATE on users"),
        ("GRANT USAGE ON session_news_number_seq TO anon", "USAGE on session_news"),
        ("GRANT DELETE ON alembic_version TO anon WITH GRANT OPTION", "DELETE on alembic_version"),
    ],
)
@run_async
async def test_health_names_roles_with_privileges(
    supabase: str, grant: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "DATABASE_TIMEOUT_SECONDS", PATIENCE_SECONDS)
    await migrate(supabase)
    execute(supabase, grant)
    assert await exposed(supabase) == {"anon": said}
    database = Database(create_engine(supabase))
    try:
        found = await Health(database, Path("/nowhere"), None, 0.0).database()
    finally:
        await database.close()
    assert found.status == "degraded"
    assert "anon" in found.detail
    await migrate(supabase)
    assert await exposed(supabase) == {}


@run_async
async def test_restored_tables_are_closed(supabase: str, newer: Path, tmp_path: Path) -> None:
    """The restore drops tables of a later release, which can then be deployed again."""
    await migrate(supabase)
    async with opened(supabase) as store:
        user = await store.new_user()
        await backup(supabase, tmp_path / "copy")
    await migrate(supabase, newer)
    await restore(supabase, tmp_path / "copy")
    assert_closed(supabase)
    assert await exposed(supabase) == {}
    async with opened(supabase) as store:
        assert [each.id for each in await store.users.list()] == [user]
    assert await migrate(supabase, newer) == (HEAD, "newer")
    assert_closed(supabase, "newer")


@run_async
async def test_privileges_of_quoted_role_are_revoked(supabase: str) -> None:
    execute(supabase, 'DO $$ BEGIN CREATE ROLE "Read Only"; EXCEPTION WHEN OTHERS THEN END $$')
    await migrate(supabase)
    execute(supabase, 'GRANT SELECT ON users TO "Read Only"')
    assert await exposed(supabase) == {"Read Only": "SELECT on users"}
    await migrate(supabase)
    assert await exposed(supabase) == {}


@run_async
async def test_restore_in_use_does_not_deadlock_with_open_transaction(
    supabase: str, tmp_path: Path
) -> None:
    """The transaction has locked a session and writes news of it afterwards."""
    await migrate(supabase)
    # Its row in the catalogue now comes after that of session_news.
    execute(supabase, "ALTER TABLE sessions SET (fillfactor = 99)")
    async with opened(supabase) as store:
        session = await store.start(await store.new_user())
        await backup(supabase, tmp_path / "copy")
        async with store.database.writing() as connection:
            await locked_session(connection, session.id)
            restoring = asyncio.create_task(restore(supabase, tmp_path / "copy", in_use=True))
            await until_lock_awaited(connection, restoring)
            # A process that waits for so long has checked for deadlocks and does not check again.
            await asyncio.sleep(DEADLOCK_TIMEOUT_SECONDS)
            await add_news(connection, session.id, store.clock.at, "note", {})
        await restoring
        assert "note" not in {news.kind for news in await store.sessions.news(session.id)}


@run_async
async def test_restore_waits_for_serving_controller(
    supabase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The questions wait too, until the restore has ended.
    monkeypatch.setattr(transactions, "BUSY_TIMEOUT_MS", 1000 * PATIENCE_SECONDS)
    await migrate(supabase)
    async with opened(supabase) as store:
        session = await store.start(await store.new_user())
        await backup(supabase, tmp_path / "copy")
        await store.new_user()
        ending = asyncio.Event()

        async def serve() -> int:
            count = 0
            while not ending.is_set():
                await store.sessions.add_news(session.id, "note", {})
                await store.users.list()
                count += 1
            return count

        serving = asyncio.create_task(serve())
        await restore(supabase, tmp_path / "copy", in_use=True)
        ending.set()
        assert await serving > 0, "no question failed"
        assert len(await store.users.list()) == 1

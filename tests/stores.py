"""The store of a database for tests: every repository, with a clock that the test moves."""

from __future__ import annotations

import asyncio
import functools
import inspect
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import IPv4Network
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ParamSpec

from polydev.controller.database import create_engine
from polydev.controller.entities import Session, now
from polydev.controller.migrate import MIGRATIONS, migrate
from polydev.controller.migrations import HEAD
from polydev.controller.settings import SessionLimits
from polydev.controller.store.sessions import NewSession, Sessions
from polydev.controller.store.transactions import Database
from polydev.controller.store.users import Tokens, Users
from polydev.controller.store.vm_slots import sync_slots
from polydev.controller.store.vms import Vms

NETWORK = IPv4Network("192.168.100.0/24")
DIGEST = "d" * 64
FAILING_MIGRATION = f'''
"""Half of it works."""
import sqlalchemy as sa
from alembic import op

revision = "bad"
down_revision = "{HEAD}"


def upgrade() -> None:
    op.create_table("half", sa.Column("id", sa.Integer, primary_key=True))
    op.add_column("users", sa.Column("mail", sa.String))
    op.execute("INSERT INTO users (id, role, created_at) VALUES ('1', 'nobody', '2026-01-01')")
'''
P = ParamSpec("P")


def run_async(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Make a coroutine a test function for pytest."""

    @functools.wraps(test)
    def in_loop(*args: P.args, **kwargs: P.kwargs) -> None:
        coroutine = test(*args, **kwargs)
        assert inspect.iscoroutine(coroutine)
        asyncio.run(coroutine)

    return in_loop


def copy_migrated_database(file: Path) -> None:
    """Copy a migrated SQLite database to this path, unless there is one."""
    if not file.exists():
        file.write_bytes(_migrated())


@functools.cache
def _migrated() -> bytes:
    """Return the migrated database, made once per process since that takes 0.3 s of CPU."""
    with TemporaryDirectory() as folder, ThreadPoolExecutor(1) as beside:  # a loop may run here
        file = Path(folder, "controller.sqlite3")
        beside.submit(asyncio.run, migrate(f"sqlite+aiosqlite:///{file}")).result()
        return file.read_bytes()


def with_a_failing_migration(folder: Path) -> Path:
    """Copy the migrations into a folder, with a last one that fails half-way."""
    shutil.copytree(MIGRATIONS, folder)
    (folder / "versions/bad.py").write_text(FAILING_MIGRATION)
    return folder


@dataclass
class Clock:
    """A clock that moves only when a test says so."""

    at: datetime = field(default_factory=now)

    def __call__(self) -> datetime:
        return self.at

    def pass_seconds(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


@dataclass
class Store:
    """Every noun's repository on one database and clock."""

    database: Database
    clock: Clock
    users: Users
    tokens: Tokens
    sessions: Sessions
    vms: Vms

    async def start(self, user_id: str, key: str | None = None) -> Session:
        return (await self.sessions.start(NewSession(user_id, "claude", DIGEST, key)))[0]

    async def start_ready(self, user_id: str) -> Session:
        """Start a session whose VM is ready."""
        session = await self.start(user_id)
        await self.vms.launched(session.vm_id)
        await self.vms.ready(session.vm_id)
        return await self.sessions.get(session.id)

    async def new_user(self) -> str:
        return (await self.users.add("user")).id


@asynccontextmanager
async def opened(
    url: str, slots: int = 4, limits: SessionLimits | None = None, clock: Clock | None = None
) -> AsyncIterator[Store]:
    """The store of a migrated database with so many slots, from 2; closed at the end."""
    limits, clock = limits or SessionLimits(), clock or Clock()
    database = Database(create_engine(url))
    try:
        await sync_slots(database, range(2, 2 + slots), NETWORK)
        yield Store(
            database,
            clock,
            Users(database, clock),
            Tokens(database, clock),
            Sessions(database, limits, clock),
            Vms(database, limits, clock),
        )
    finally:
        await database.close()

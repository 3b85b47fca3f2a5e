"""Databases for tests: a real PostgreSQL server for the run, and SQLite files.

A test module that wants them says `pytest_plugins = ["tests.databases"]`; `tests.stores` has what
it opens them with. The server listens on a socket in its own folder only, is started by the first
test that needs it, and goes with the last. It asks for no password there;
on an address of loopback that is its own it takes whom HBA names.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import pwd
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.migrate import migrate
from polydev.processes import run, spawn, wait_or_end
from tests.stores import copy_migrated_database

KINDS = ("sqlite", "postgresql")
START_PATIENCE_SECONDS = 60
# A server's folder is removed then, which fails while its processes still write there.
END_PATIENCE_SECONDS = 60
LOCK_PATIENCE_SECONDS = 60
# Nothing here has to survive a power cut.
SERVER_OPTIONS = ("fsync=off", "shared_buffers=32MB", "max_connections=60")
# Access over TCP: `guest` with a password, `tls` over TLS, which this server does not speak.
HBA = """\
local all all trust
hostssl all tls samehost trust
host all guest samehost scram-sha-256
host all owner samehost trust
"""


def postgres_bin() -> Path:
    """Return the folder of the newest PostgreSQL server's programs on Debian."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    assert found, "no PostgreSQL server: run ./inv once, it installs what tests need"
    return found[-1].parent


class PostgresServer:
    """A server in a folder of its own; its databases are made from a migrated template."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.address = address
        self._numbers = itertools.count(1)

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://owner@/{database}?host={self.folder}"

    def create(self, template: str = "template0") -> str:
        """Make a database; return its name."""
        name = f"test_{next(self._numbers)}"
        self._do_when_unused(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop(self, database: str) -> None:
        self._do_when_unused(f"DROP DATABASE {database} WITH (FORCE)")

    def _do_when_unused(self, statement: str) -> None:
        """PostgreSQL itself waits 5 s for connections to the database that are ending."""
        deadline = time.monotonic() + END_PATIENCE_SECONDS
        while time.monotonic() < deadline:
            with suppress(psycopg.errors.ObjectInUse):
                self.do(statement)
                return
        self.do(statement)

    def answers(self) -> bool:
        try:
            self.do("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def rows(self, database: str, question: str) -> list[tuple[object, ...]]:
        where = f"host={self.folder} dbname={database} user=owner"
        with psycopg.connect(where) as connection:
            return connection.execute(question.encode()).fetchall()

    def do(self, statement: str, database: str = "postgres") -> None:
        where = f"host={self.folder} dbname={database} user=owner"
        with psycopg.connect(where, autocommit=True) as connection:
            connection.execute(statement.encode())


def own_address() -> str:
    """Return a loopback address that no other process listens on."""
    pid = os.getpid()
    return f"127.{1 + (pid >> 14) % 254}.{pid >> 7 & 127}.{1 + (pid & 127)}"


@contextmanager
def running_server(address: str | None = None, hba: str = HBA) -> Iterator[PostgresServer]:
    """Run a server that listens at an address and authenticates by `hba`."""
    address = address or own_address()
    # The server's user must get there, and a socket's path must be short: not pytest's folder.
    folder = Path(tempfile.mkdtemp(prefix="polydev-pg-", dir="/tmp"))
    try:
        become = _as_unprivileged(folder)
        binaries, data = postgres_bin(), folder / "data"
        made = ["--username", "owner", "--auth", "trust", "--encoding", "UTF8", "--locale", "C"]
        run([*become, binaries / "initdb", "--pgdata", data, "--no-sync", *made])
        (data / "pg_hba.conf").write_text(hba)
        options = [f"--{option}" for option in (*SERVER_OPTIONS, f"listen_addresses={address}")]
        with (folder / "log").open("wb") as log:
            process = spawn(
                [*become, binaries / "postgres", "-D", data, "-k", folder, *options],
                stdout=log,
                stderr=log,
            )
        try:
            server = PostgresServer(folder, address)
            deadline = time.monotonic() + START_PATIENCE_SECONDS
            while not server.answers():
                with suppress(TimeoutExpired):
                    process.wait(0.05)
                said = (folder / "log").read_text()
                assert process.poll() is None, f"PostgreSQL ended:\n{said}"
                assert time.monotonic() < deadline, f"PostgreSQL does not answer:\n{said}"
            yield server
        finally:
            process.send_signal(signal.SIGINT)  # it ends its children, whoever is connected
            wait_or_end(process, END_PATIENCE_SECONDS)
    finally:
        shutil.rmtree(folder)


def _as_unprivileged(folder: Path) -> list[str]:
    """Return the start of a command line that runs unprivileged and ends with this process."""
    dies_with_us = ["setpriv", "--pdeathsig", "INT"]
    if os.geteuid() != 0:
        return dies_with_us
    user = pwd.getpwnam("nobody")
    os.chown(folder, user.pw_uid, user.pw_gid)
    ids = ["--reuid", str(user.pw_uid), "--regid", str(user.pw_gid), "--clear-groups"]
    return [*dies_with_us, *ids]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def migrated_template(postgres_server: PostgresServer) -> str:
    name = postgres_server.create()
    asyncio.run(migrate(postgres_server.url(name)))
    return name


@pytest.fixture(params=KINDS)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database that was never migrated, of each kind."""
    if request.param == "sqlite":
        yield sqlite_url(tmp_path)
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = server.create()
    yield server.url(name)
    server.drop(name)


@pytest.fixture(params=KINDS)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of an empty migrated database, of each kind."""
    if request.param == "sqlite":
        copy_migrated_database(tmp_path / "controller.sqlite3")
        yield sqlite_url(tmp_path)
        return
    template: str = request.getfixturevalue("migrated_template")
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = server.create(template)
    yield server.url(name)
    server.drop(name)


def sqlite_url(folder: Path) -> str:
    return f"sqlite+aiosqlite:///{folder / 'controller.sqlite3'}"


async def until_lock_awaited(
    connection: AsyncConnection, by: asyncio.Task[Any] | None = None
) -> None:
    """Wait until another connection waits for a lock, or the task that should has ended."""
    waiting = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
    while not (await connection.execute(waiting)).scalar_one():
        if by is not None and by.done():
            return
        assert time.monotonic() < deadline, "nobody waits"
        await asyncio.sleep(0.01)

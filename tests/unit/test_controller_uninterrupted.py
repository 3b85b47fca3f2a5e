"""Database queries run to their end, even if their caller is cancelled."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from inspect import iscoroutinefunction, signature
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from polydev.controller import store
from polydev.controller.database import create_engine
from polydev.controller.health import Health
from polydev.controller.store import transactions
from polydev.controller.store.transactions import Database, uninterrupted


@uninterrupted
class Counting:
    """A store with a query that ends once `may_end` is set; `begun` is set when it starts."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.begun = asyncio.Event()
        self.may_end = threading.Event()
        self.answers: list[int] = []
        sa.event.listen(database.engine.sync_engine, "connect", self._add_function)

    def _add_function(self, connection: Any, _record: object) -> None:
        connection.create_function("held", 0, lambda: self.may_end.wait(60))

    async def count(self) -> None:
        async with self._database.reading() as connection:
            self.begun.set()
            self.answers.append((await connection.execute(sa.text("SELECT held()"))).scalar_one())

    async def stuck(self) -> None:
        self.begun.set()
        await asyncio.Event().wait()


class Lost:
    """Count the abandoned connections of a database."""

    def __init__(self, database: Database) -> None:
        self.count = 0
        sa.event.listen(database.engine.sync_engine.pool, "invalidate", self._note)

    def _note(self, *_words: object) -> None:
        self.count += 1


def play(migrated: Path, folder: Path, scenario: Callable[[Database], Awaitable[None]]) -> None:
    file = folder / "controller.sqlite3"
    shutil.copy(migrated, file)

    async def run() -> None:
        database = Database(create_engine(f"sqlite+aiosqlite:///{file}"))
        lost = Lost(database)
        await scenario(database)
        await database.close()
        assert lost.count == 0
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_query_completes_though_its_caller_is_cancelled(migrated: Path, tmp_path: Path) -> None:
    async def scenario(database: Database) -> None:
        counting = Counting(database)
        asking = asyncio.create_task(counting.count())
        await counting.begun.wait()
        await asyncio.sleep(0)
        while not asking.done():
            asking.cancel()
            await asyncio.sleep(0)
        assert asking.cancelled()
        assert counting.answers == []
        counting.may_end.set()
        await database.close()
        assert counting.answers == [1]

    play(migrated, tmp_path, scenario)


def test_endless_query_is_given_up_without_a_caller(
    migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "LEFT_SECONDS", 0)

    async def scenario(database: Database) -> None:
        stuck = Counting(database)
        asking = asyncio.create_task(stuck.stuck())
        await stuck.begun.wait()
        asking.cancel()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait(others)

    play(migrated, tmp_path, scenario)


def test_close_does_not_wait_for_an_endless_query(
    migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "ENDING_SECONDS", 0.01)

    async def scenario(database: Database) -> None:
        stuck = Counting(database)
        asking = asyncio.create_task(stuck.stuck())
        await stuck.begun.wait()
        asking.cancel()
        await database.close()

    play(migrated, tmp_path, scenario)


def test_health_timeout_does_not_leak_a_connection(
    migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polydev.controller.health.DATABASE_TIMEOUT_SECONDS", 1e-9)

    async def scenario(database: Database) -> None:
        health = Health(database, tmp_path, None, 0.0)
        assert (await health.database()).detail == "no answer within 1e-09 s"

    play(migrated, tmp_path, scenario)


def test_database_is_healthy_though_the_process_stood_still(
    migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polydev.controller.health.DATABASE_TIMEOUT_SECONDS", 300)

    async def scenario(database: Database) -> None:
        loop = asyncio.get_running_loop()
        time = loop.time
        # As after a stop of the process: no timer ran meanwhile, and all are due at once.
        loop.call_soon(setattr, loop, "time", lambda: time() + 301)
        assert (await Health(database, tmp_path, None, 0.0).database()).status == "healthy"

    play(migrated, tmp_path, scenario)


def stores() -> Iterator[type]:
    for module in pkgutil.iter_modules(store.__path__, f"{store.__name__}."):
        for each in vars(importlib.import_module(module.name)).values():
            is_here = isinstance(each, type) and each.__module__ == module.name
            if is_here and "database" in signature(each).parameters:
                yield each


@pytest.mark.parametrize("kind", list(stores()), ids=lambda kind: kind.__name__)
def test_every_store_query_is_uninterrupted(kind: type) -> None:
    questions = {
        name: method
        for name, method in vars(kind).items()
        if iscoroutinefunction(method) and not name.startswith("_")
    }
    assert questions
    assert [name for name, method in questions.items() if not hasattr(method, "__wrapped__")] == []

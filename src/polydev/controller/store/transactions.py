"""Transactions for reading and writing, and queries that are never cut off by a cancelled caller.

A cancelled query costs its connection, and one that is cancelled twice, as when the process ends,
never returns. Callers can be cancelled at any time: a client disconnects, a timeout passes, the
service stops. So every query runs in a task of its own, which continues without its caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from polydev.controller.database import BUSY_TIMEOUT_MS

T = TypeVar("T")
Store = TypeVar("Store")
# How long a query may run on without its caller; then it is cancelled, once.
LEFT_SECONDS = 30.0
ENDING_SECONDS = 10.0


def uninterrupted(store: type[Store]) -> type[Store]:
    """Decorate a store so that its public queries run to their end if their caller is cancelled.

    The store's database is its `_database`.
    """
    for name, method in list(vars(store).items()):
        if iscoroutinefunction(method) and not name.startswith("_"):
            setattr(store, name, _uninterrupted(method))
    return store


def _uninterrupted(
    method: Callable[..., Coroutine[Any, Any, T]],
) -> Callable[..., Coroutine[Any, Any, T]]:
    @wraps(method)
    async def question(store: Any, *words: Any, **named: Any) -> T:
        database: Database = store._database
        return await database.uninterrupted(method(store, *words, **named))

    return question


class Database:
    """The database engine, and its transactions."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        # SQLite: take the write lock at the start. A reader that becomes a writer would fail at
        # once if another wrote meanwhile, whatever its timeout. Other databases ignore this.
        self._writing = engine.execution_options(begin="BEGIN IMMEDIATE")
        self._under_way: set[asyncio.Task[Any]] = set()

    async def uninterrupted(self, question: Coroutine[Any, Any, T]) -> T:
        """Return the result of a query that continues if its caller is cancelled."""
        task = asyncio.create_task(question)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.done():
                timer = asyncio.get_running_loop().call_later(LEFT_SECONDS, task.cancel)
                task.add_done_callback(lambda _task: timer.cancel())
            raise

    async def delete(self, table: sa.Table, *which: sa.ColumnElement[bool]) -> int:
        """Delete rows and return how many. Takes the write lock only if there are any."""
        asked = sa.select(sa.literal(1)).select_from(table).where(*which).limit(1)
        async with self.reading() as connection:
            if (await connection.execute(asked)).first() is None:
                return 0
        async with self.writing() as connection:
            return (await connection.execute(sa.delete(table).where(*which))).rowcount

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        async with self.engine.connect() as connection:
            yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction for writing; an exception rolls it back.

        Raises OperationalError after waiting too long for another writer: see `database`.
        """
        async with self._writing.begin() as connection:
            if connection.dialect.name == "postgresql":
                await connection.execute(sa.text(f"SET LOCAL lock_timeout = {BUSY_TIMEOUT_MS}"))
            yield connection

    async def close(self) -> None:
        """Wait for running queries, up to a limit, and close all connections."""
        if self._under_way:
            _, late = await asyncio.wait(self._under_way, timeout=ENDING_SECONDS)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=ENDING_SECONDS)
        await self.engine.dispose()

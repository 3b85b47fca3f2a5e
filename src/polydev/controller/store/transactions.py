"""Transactions: to read, and to write without being overtaken."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from polydev.controller.database import BUSY_TIMEOUT_MS


class Database:
    """The engine, and how transactions on it are begun."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        # SQLite's write lock from the start: a reader that turns writer would be refused at once
        # if another wrote meanwhile, whatever time-out it has. Other databases ignore it.
        self._writing = engine.execution_options(begin="BEGIN IMMEDIATE")

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        async with self.engine.connect() as connection:
            yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """One transaction: all of it, or nothing where an exception leaves it.

        Whoever waits longer than BUSY_TIMEOUT_MS for another writer gets an OperationalError.
        """
        async with self._writing.begin() as connection:
            if connection.dialect.name == "postgresql":
                await connection.execute(text(f"SET LOCAL lock_timeout = {BUSY_TIMEOUT_MS}"))
            yield connection

    async def close(self) -> None:
        await self.engine.dispose()

"""What several unit tests start from."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from polydev.controller.migrate import migrate


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database to copy: it is as a migration left it."""
    file = tmp_path_factory.mktemp("database") / "controller.sqlite3"
    asyncio.run(migrate(f"sqlite+aiosqlite:///{file}"))
    return file

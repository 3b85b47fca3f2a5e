"""Shared parts of the command line's verbs: their description, and the database."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polydev.controller.settings import ControllerSettings
    from polydev.controller.store.transactions import Database

Run = Callable[["ControllerSettings", argparse.Namespace], Awaitable[object]]
MIGRATE_HINT = "master-controller migrate --config FILE"


@dataclass(frozen=True)
class ControllerVerb:
    """A verb of a group; `options` are arguments of `add_argument`, by the option's name."""

    help: str
    run: Run
    options: dict[str, dict[str, Any]] = field(default_factory=dict)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    """Open the database, which must have this release's schema. Raises DatabaseUnusable."""
    from sqlalchemy.exc import SQLAlchemyError

    from polydev.controller.database import DatabaseUnusable, create_engine, schema_revision
    from polydev.controller.migrations import HEAD
    from polydev.controller.store.transactions import Database

    _require_file(url)
    database = Database(create_engine(url))
    try:
        revision = await schema_revision(database.engine)
        if revision != HEAD:
            found = f"is at revision {revision}" if revision else "was never migrated"
            raise DatabaseUnusable(f"the database {found}, this release needs {HEAD}", MIGRATE_HINT)
        yield database
    except (SQLAlchemyError, OSError) as error:
        # Only the driver's message: SQLAlchemy's would quote the statement.
        cause = getattr(error, "orig", None) or error
        raise DatabaseUnusable(f"cannot use the database: {cause}") from error
    finally:
        await database.close()


def _require_file(url: str) -> None:
    from sqlalchemy.engine import make_url

    from polydev.controller.database import DatabaseUnusable

    parts = make_url(url)
    # SQLite would create an empty one.
    if parts.get_backend_name() == "sqlite" and not Path(parts.database or "").is_file():
        raise DatabaseUnusable(f"there is no database {parts.database}", MIGRATE_HINT)

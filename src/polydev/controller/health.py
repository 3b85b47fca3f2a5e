"""The health report: the database and the image store, each with its state in words."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from sqlalchemy.exc import SQLAlchemyError

import polydev
from polydev.controller.api_model import ApiModel
from polydev.controller.database import schema_revision
from polydev.controller.migrations import HEAD
from polydev.controller.store import transactions
from polydev.controller.store.postgres_access import exposed_to
from polydev.image_layout import GOLDEN_LINK

DATABASE_TIMEOUT_SECONDS = 5
WAITS = 5

State = Literal["healthy", "degraded", "unhealthy"]
T = TypeVar("T")


class Component(ApiModel):
    status: State
    detail: str


class DatabaseHealth(Component):
    revision: str | None = None
    expected_revision: str = HEAD


class ImageStoreHealth(Component):
    golden: str | None = None


class Components(ApiModel):
    database: DatabaseHealth
    image_store: ImageStoreHealth


class HealthReport(ApiModel):
    """`unhealthy` if a required component is; a `degraded` one does not change the status."""

    status: Literal["healthy", "unhealthy"]
    release: str | None
    version: str
    uptime_seconds: float
    components: Components


@dataclass
class Health:
    """Checks the components. `was_current`: the database was at this code's revision before."""

    store: transactions.Database
    image_store: Path
    release: str | None
    started: float
    was_current: bool = False

    async def report(self) -> HealthReport:
        components = Components(
            database=await self.database(), image_store=image_store_state(self.image_store)
        )
        parts: list[Component] = [components.database, components.image_store]
        return HealthReport(
            status="unhealthy" if any(p.status == "unhealthy" for p in parts) else "healthy",
            release=self.release,
            version=polydev.__version__,
            uptime_seconds=self.uptime_seconds,
            components=components,
        )

    @property
    def uptime_seconds(self) -> float:
        return round(time.monotonic() - self.started, 3)

    async def database(self) -> DatabaseHealth:
        try:
            looking = self.store.uninterrupted(self._look())
            revision, roles = await _in_time(looking, DATABASE_TIMEOUT_SECONDS)
        except asyncio.TimeoutError:
            return DatabaseHealth(
                status="unhealthy", detail=f"no answer within {DATABASE_TIMEOUT_SECONDS} s"
            )
        except (SQLAlchemyError, OSError) as error:
            # Only the driver's own words: SQLAlchemy's would quote the statement.
            cause = getattr(error, "orig", None) or error
            return DatabaseHealth(status="unhealthy", detail=f"cannot be reached: {cause}")
        self.was_current = self.was_current or revision == HEAD
        return database_state(revision, was_current=self.was_current, roles=roles)

    async def _look(self) -> tuple[str | None, list[str]]:
        """Return the revision, and the roles besides the owner that may use the tables."""
        revision = await schema_revision(self.store.engine)
        async with self.store.reading() as connection:
            return revision, list(await exposed_to(connection))


async def _in_time(question: Coroutine[Any, Any, T], seconds: float) -> T:
    """Return the answer to a question. Raises asyncio.TimeoutError if it takes longer.

    Where this process itself stands still, that ends one of the waits, and the answer has the
    others to arrive.
    """
    asking = asyncio.create_task(question)
    try:
        for _ in range(WAITS):
            if (await asyncio.wait({asking}, timeout=seconds / WAITS))[0]:
                return asking.result()
        raise asyncio.TimeoutError
    finally:
        if not asking.done():
            asking.cancel()
            await asyncio.wait({asking})


def database_state(
    revision: str | None, *, was_current: bool, roles: Sequence[str] = ()
) -> DatabaseHealth:
    """Return the state of a database at `revision` whose tables `roles` may use too.

    A deployment migrates, and a rollback restores, before the handover. The process that still
    serves has seen its own revision before, so it is only degraded meanwhile.
    """
    if revision == HEAD and roles:
        detail = f"at revision {HEAD}, and open to other roles: {', '.join(roles)}"
        return DatabaseHealth(status="degraded", detail=detail, revision=revision)
    if revision == HEAD:
        return DatabaseHealth(status="healthy", detail=f"at revision {HEAD}", revision=revision)
    found = f"at revision {revision}" if revision else "never migrated"
    detail = f"{found}, this release needs {HEAD}"
    if was_current and revision:
        return DatabaseHealth(
            status="degraded", detail=f"{detail}: another is being deployed", revision=revision
        )
    return DatabaseHealth(
        status="unhealthy", detail=f"{detail}: run master-controller migrate", revision=revision
    )


def image_store_state(store: Path) -> ImageStoreHealth:
    """Return whether there is a golden image to start VMs from."""
    link = store / GOLDEN_LINK
    if not os.path.lexists(link):
        return ImageStoreHealth(status="degraded", detail=f"no golden image: {link} is missing")
    if not link.exists():
        return ImageStoreHealth(
            status="degraded", detail=f"golden image is missing: {link} points to nothing"
        )
    digest = link.resolve().parent.name
    return ImageStoreHealth(status="healthy", detail=f"golden image {digest}", golden=digest)

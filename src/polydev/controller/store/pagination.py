"""Pagination of lists: newest first, each page after the last row of the one before.

By that row and not by an offset, so that rows added or deleted meanwhile shift nothing.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from polydev.controller.entities import Session, Vm


def paginated(
    statement: sa.Select[Any],
    columns: ReadOnlyColumnCollection[str, Any],
    limit: int,
    before: Session | Vm | None,
) -> sa.Select[Any]:
    """Return the newest rows up to a limit; with `before`, those that follow it in the list."""
    made, name = columns.created_at, columns.id
    if before is not None:
        # The first condition is the one that can use an index.
        tied = sa.or_(made < before.created_at, name > before.id)
        statement = statement.where(made <= before.created_at, tied)
    return statement.order_by(made.desc(), name).limit(limit)

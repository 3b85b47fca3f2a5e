"""Lists in pages: newest first, and each page begins after the last row of the one before.

By that row, and not by how many were seen: what is added or deleted meanwhile moves nothing.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from polydev.controller.model import Session, Vm


def paginated(
    statement: sa.Select[Any],
    columns: ReadOnlyColumnCollection[str, Any],
    limit: int,
    before: Session | Vm | None,
) -> sa.Select[Any]:
    """So many of the newest; with `before`, of those that come after it in that order."""
    made, name = columns.created_at, columns.id
    if before is not None:
        # The first condition is the one that an index serves.
        tied = sa.or_(made < before.created_at, name > before.id)
        statement = statement.where(made <= before.created_at, tied)
    return statement.order_by(made.desc(), name).limit(limit)

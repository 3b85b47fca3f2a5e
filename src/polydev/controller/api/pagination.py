"""Lists in pages: `limit` entries, and `next`, which is sent as `before` to get the next page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar
from uuid import UUID

from fastapi import Query

from polydev.controller.api.url_numbers import WholeNumber

T = TypeVar("T")
K = TypeVar("K")

MAX_ID = 2**31 - 1  # of PostgreSQL's type integer
BEFORE = "The `next` of the previous page"

BeforeId = Annotated[WholeNumber | None, Query(ge=1, le=MAX_ID, description=BEFORE)]
BeforeUuid = Annotated[UUID | None, Query(description=BEFORE)]


def page_of(found: Sequence[T], limit: int, key: Callable[[T], K]) -> tuple[Sequence[T], K | None]:
    """Return the first `limit` entries, and `next` if there are more.

    `found` has at least one entry more than the page where there is a next page.
    """
    page = found[:limit]
    return page, key(page[-1]) if len(found) > limit else None

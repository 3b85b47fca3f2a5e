"""How many streams one user may read at once: events of sessions, and consoles that they follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.exceptions import HTTPException

RETRY_SECONDS = 5


class Streams:
    def __init__(self, most_per_user: int) -> None:
        self._most = most_per_user
        self._open: Counter[str] = Counter()

    def check(self, user_id: str) -> None:
        """Raises HTTPException 429 if the user may open no further stream now."""
        if self._open.get(user_id, 0) >= self._most:
            raise HTTPException(
                429,
                f"a user may read {self._most} streams at once: close one first",
                {"Retry-After": str(RETRY_SECONDS)},
            )

    @contextmanager
    def reading(self, user_id: str) -> Iterator[None]:
        """Count a stream of the user until the end of the block."""
        self._open[user_id] += 1
        try:
            yield
        finally:
            self._open[user_id] -= 1
            if not self._open[user_id]:
                del self._open[user_id]

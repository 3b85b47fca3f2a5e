"""Limits of what one caller may do: requests per second, and streams read at once.

They are kept in memory, by each process.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.exceptions import HTTPException

MOST_BUCKETS = 10_000
STREAM_RETRY_SECONDS = 5


@dataclass(frozen=True)
class _Bucket:
    left: float
    at: float


class RateLimiter:
    """A token bucket for each caller: `burst` requests at once, `per_second` on average.

    There are at most MOST_BUCKETS. Beyond that the least recently used one is deleted, since it is
    the fullest.
    """

    def __init__(
        self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.per_second = per_second
        self.burst = burst
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}  # least recently used first

    def look(self, caller: str) -> None:
        """Check without counting. Raises HTTPException 429, which says how long to wait."""
        bucket = self._buckets.get(caller)
        left = self.burst if bucket is None else self._filled(bucket, self._clock())
        if left < 1:
            self._buckets[caller] = self._buckets.pop(caller)
            wait = math.ceil((1 - left) / self.per_second)
            raise HTTPException(
                429, f"too many requests: wait {wait} s", {"Retry-After": str(wait)}
            )

    def take(self, caller: str, count: int = 1) -> None:
        """Count `count` requests. Raises HTTPException 429, and counts none, if none are left.

        More than are left may be taken at once; later requests wait for them.
        """
        self.look(caller)
        now = self._clock()
        bucket = self._buckets.pop(caller, None) or _Bucket(self.burst, now)
        self._buckets[caller] = _Bucket(self._filled(bucket, now) - count, now)
        if len(self._buckets) > MOST_BUCKETS:
            del self._buckets[next(iter(self._buckets))]

    def _filled(self, bucket: _Bucket, now: float) -> float:
        return min(self.burst, bucket.left + (now - bucket.at) * self.per_second)


class StreamLimit:
    """Limit of the streams that a user reads: events of sessions, and consoles."""

    def __init__(self, most_per_user: int) -> None:
        self._most = most_per_user
        self._open: Counter[str] = Counter()

    def check(self, user_id: str) -> None:
        """Raise HTTPException 429 if the user has too many open streams."""
        if self._open.get(user_id, 0) >= self._most:
            raise HTTPException(
                429,
                f"too many open streams: a user may read {self._most} at once; close one first",
                {"Retry-After": str(STREAM_RETRY_SECONDS)},
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

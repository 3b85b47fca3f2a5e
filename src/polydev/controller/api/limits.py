"""How often a caller may ask: a bucket of tokens for each, kept in memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.exceptions import HTTPException

MOST_BUCKETS = 10_000


@dataclass(frozen=True)
class _Bucket:
    left: float
    at: float


class Buckets:
    """`burst` at once, then `per_second` on average.

    There are MOST_BUCKETS at most: the one that was used the longest ago is forgotten, since it is
    the nearest to being full again.
    """

    def __init__(
        self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.per_second = per_second
        self.burst = burst
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}  # in the order of their use

    def look(self, caller: str) -> None:
        """Count none. Raises HTTPException 429, which says when the next one may come."""
        bucket = self._buckets.get(caller)
        left = self.burst if bucket is None else self._filled(bucket, self._clock())
        if left < 1:
            self._buckets[caller] = self._buckets.pop(caller)
            wait = math.ceil((1 - left) / self.per_second)
            raise HTTPException(429, f"too many, wait {wait} s", {"Retry-After": str(wait)})

    def take(self, caller: str, count: int = 1) -> None:
        """Count so many. Raises HTTPException 429, and counts none, where there is none left.

        More than are left may be taken at once; the next ones wait for these.
        """
        self.look(caller)
        now = self._clock()
        bucket = self._buckets.pop(caller, None) or _Bucket(self.burst, now)
        self._buckets[caller] = _Bucket(self._filled(bucket, now) - count, now)
        if len(self._buckets) > MOST_BUCKETS:
            del self._buckets[next(iter(self._buckets))]

    def _filled(self, bucket: _Bucket, now: float) -> float:
        return min(self.burst, bucket.left + (now - bucket.at) * self.per_second)

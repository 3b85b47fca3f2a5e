"""Rate limits of callers."""

from __future__ import annotations

import contextlib

import pytest
from starlette.exceptions import HTTPException

from polydev.controller.auth import rate_limits as limits
from polydev.controller.auth.rate_limits import RateLimiter


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def buckets(clock: Clock) -> RateLimiter:
    return RateLimiter(per_second=0.5, burst=3, clock=clock)


def test_request_after_a_burst_gets_retry_after(buckets: RateLimiter) -> None:
    for _ in range(3):
        buckets.take("a")
    with pytest.raises(HTTPException) as refused:
        buckets.take("a")
    assert refused.value.status_code == 429
    assert refused.value.headers == {"Retry-After": "2"}


def test_request_after_retry_after_passes(buckets: RateLimiter, clock: Clock) -> None:
    for _ in range(3):
        buckets.take("a")
    clock.now += 2
    buckets.take("a")
    with pytest.raises(HTTPException):
        buckets.take("a")


def test_refused_requests_do_not_count(buckets: RateLimiter, clock: Clock) -> None:
    for _ in range(3):
        buckets.take("a")
    for _ in range(10):
        with pytest.raises(HTTPException):
            buckets.take("a")
    clock.now += 2
    buckets.take("a")


def test_long_pause_allows_no_more_than_a_burst(buckets: RateLimiter, clock: Clock) -> None:
    buckets.take("a")
    clock.now += 1e6
    for _ in range(3):
        buckets.take("a")
    with pytest.raises(HTTPException):
        buckets.take("a")


def test_callers_have_separate_limits(buckets: RateLimiter) -> None:
    for _ in range(3):
        buckets.take("a")
    buckets.take("b")


def test_number_of_buckets_is_bounded(
    buckets: RateLimiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds even if no bucket is full again; a refused caller stays refused."""
    monkeypatch.setattr(limits, "MOST_BUCKETS", 10)
    for number in range(100):
        if number % 5 == 0:
            with contextlib.suppress(HTTPException):
                buckets.take("often")
        buckets.take(f"once-{number}")
    assert len(buckets._buckets) == 10
    with pytest.raises(HTTPException):
        buckets.take("often")
    buckets.take("once-0")


def test_look_does_not_count_as_a_request(buckets: RateLimiter) -> None:
    buckets.look("a")
    assert not buckets._buckets
    for _ in range(3):
        buckets.take("a")
    with pytest.raises(HTTPException) as refused:
        buckets.look("a")
    assert refused.value.headers == {"Retry-After": "2"}

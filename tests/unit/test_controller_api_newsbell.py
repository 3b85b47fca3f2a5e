"""Whoever follows news hears of them, at the cost of one question for all."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy.exc import OperationalError

from polydev.controller.api.newsbell import NewsBell


class Latest:
    """The number of the latest news, and how often it was asked for; `often` is set at 5."""

    def __init__(self) -> None:
        self.number = 0
        self.asked = 0
        self.failure: Exception | None = None
        self.often = asyncio.Event()

    async def __call__(self) -> int:
        self.asked += 1
        if self.asked >= 5:
            self.often.set()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        return self.number


async def heard(bell: NewsBell) -> None:
    await asyncio.wait_for(bell.next_ring().wait(), 60)


def test_rings_at_once_and_then_for_each_change() -> None:
    async def scenario() -> None:
        latest = Latest()
        bell = NewsBell(latest, 0)
        async with bell.listening():
            await heard(bell)
            ring = bell.next_ring()
            await asyncio.wait_for(latest.often.wait(), 60)
            assert not ring.is_set()
            latest.number = 1
            await asyncio.wait_for(ring.wait(), 60)

    asyncio.run(scenario())


def test_asks_only_while_somebody_listens_and_once_for_all() -> None:
    async def scenario() -> None:
        latest = Latest()
        bell = NewsBell(latest, 1000)
        async with bell.listening(), bell.listening():
            await heard(bell)
        await asyncio.sleep(0)
        assert latest.asked == 1
        async with bell.listening():
            await heard(bell)
        assert latest.asked == 2
        assert len(asyncio.all_tasks()) <= 2

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "failure", [OperationalError("SELECT", {}, Exception("gone")), ValueError("a bug"), OSError()]
)
def test_goes_on_after_whatever_failed(failure: Exception) -> None:
    async def scenario() -> None:
        latest = Latest()
        latest.failure = failure
        bell = NewsBell(latest, 0)
        async with bell.listening():
            await heard(bell)

    asyncio.run(scenario())


def test_who_stops_listening_cuts_no_question_short() -> None:
    async def scenario() -> str:
        begun, go_on = asyncio.Event(), asyncio.Event()
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def latest() -> int:
            begun.set()
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                ended.set_result("cancelled")
                raise
            ended.set_result("answered")
            return 1

        async with NewsBell(latest, 1000).listening():
            await asyncio.wait_for(begun.wait(), 60)
        await asyncio.sleep(0)
        go_on.set()
        return await asyncio.wait_for(ended, 60)

    assert asyncio.run(scenario()) == "answered"

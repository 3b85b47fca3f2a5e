"""Followers of sessions are woken by new events, with one query for all of them."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy.exc import OperationalError

from polydev.controller.event_notifier import EventNotifier


class Latest:
    """The number of the latest event, and how often it was asked for; `often` is set at 5."""

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


async def notified(notifier: EventNotifier) -> None:
    await asyncio.wait_for(notifier.next_change().wait(), 60)


def test_notifies_at_once_and_then_for_each_change() -> None:
    async def scenario() -> None:
        latest = Latest()
        notifier = EventNotifier(latest, 0)
        async with notifier.subscribed():
            await notified(notifier)
            changed = notifier.next_change()
            await asyncio.wait_for(latest.often.wait(), 60)
            assert not changed.is_set()
            latest.number = 1
            await asyncio.wait_for(changed.wait(), 60)

    asyncio.run(scenario())


def test_queries_run_only_with_subscribers_and_once_for_all() -> None:
    async def scenario() -> None:
        latest = Latest()
        notifier = EventNotifier(latest, 1000)
        async with notifier.subscribed(), notifier.subscribed():
            await notified(notifier)
        await asyncio.sleep(0)
        assert latest.asked == 1
        async with notifier.subscribed():
            await notified(notifier)
        assert latest.asked == 2
        assert len(asyncio.all_tasks()) <= 2

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "failure", [OperationalError("SELECT", {}, Exception("gone")), ValueError("a bug"), OSError()]
)
def test_notifier_continues_after_errors(failure: Exception) -> None:
    async def scenario() -> None:
        latest = Latest()
        latest.failure = failure
        notifier = EventNotifier(latest, 0)
        async with notifier.subscribed():
            await notified(notifier)

    asyncio.run(scenario())


def test_ending_a_subscription_does_not_cancel_the_query() -> None:
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

        async with EventNotifier(latest, 1000).subscribed():
            await asyncio.wait_for(begun.wait(), 60)
        await asyncio.sleep(0)
        go_on.set()
        return await asyncio.wait_for(ended, 60)

    assert asyncio.run(scenario()) == "answered"

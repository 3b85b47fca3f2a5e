"""One timer for all that want to be called at intervals."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from polydev.controller.relay.keepalive import KeepaliveTimer


def test_one_timer_calls_all_until_they_are_removed() -> None:
    async def play() -> None:
        loop, timer = asyncio.get_running_loop(), KeepaliveTimer(0.001)
        made = 0
        call_later = loop.call_later

        def counted(*arguments, **options):  # type: ignore[no-untyped-def]
            nonlocal made
            made += 1
            return call_later(*arguments, **options)

        loop.call_later = counted  # type: ignore[method-assign, assignment]
        calls: list[int] = []
        done = asyncio.Event()

        def call(number: int) -> None:
            calls.append(number)
            if len(calls) == 6:
                done.set()

        each = [lambda number=number: call(number) for number in range(3)]
        for one in each:
            timer.add(one)
        assert made == 1
        await done.wait()
        assert sorted(calls) == [0, 0, 1, 1, 2, 2]
        assert made == 3  # the first, and one after each beat
        for one in each:
            timer.remove(one)
            timer.remove(one)

    asyncio.run(play())


def test_callback_may_remove_itself() -> None:
    async def play() -> None:
        timer, called = KeepaliveTimer(0.001), asyncio.Event()

        def once() -> None:
            timer.remove(once)
            called.set()

        timer.add(once)
        await called.wait()
        called.clear()
        timer.add(once)  # and may come again
        await called.wait()

    asyncio.run(play())


def test_timer_goes_on_for_the_others_after_a_removal() -> None:
    async def play() -> None:
        timer, called = KeepaliveTimer(0.001), asyncio.Event()
        leaves = asyncio.Event().set
        timer.add(leaves)
        timer.add(called.set)
        timer.remove(leaves)
        await asyncio.wait_for(called.wait(), 60)

    asyncio.run(play())


def test_all_callbacks_may_remove_themselves_at_once() -> None:
    async def play() -> None:
        timer = KeepaliveTimer(0.001)
        called: list[int] = []
        errors: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, error: errors.append(error))
        done = asyncio.Event()

        def once(number: int) -> None:
            timer.remove(each[number])
            called.append(number)
            if len(called) == len(each):
                done.set()

        each = [partial(once, number) for number in range(3)]
        for call in each:
            timer.add(call)
        await asyncio.wait_for(done.wait(), 60)
        assert errors == []

    asyncio.run(play())

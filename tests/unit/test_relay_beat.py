"""One timer for whoever wants to be called now and then."""

from __future__ import annotations

import asyncio

from polydev.controller.relay.beat import Beat


def test_all_are_called_by_one_timer_until_they_leave() -> None:
    async def play() -> None:
        loop, beat = asyncio.get_running_loop(), Beat(0.001)
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
            beat.join(one)
        assert made == 1
        await done.wait()
        assert sorted(calls) == [0, 0, 1, 1, 2, 2]
        assert made == 3  # the first, and one after each beat
        for one in each:
            beat.leave(one)
            beat.leave(one)

    asyncio.run(play())


def test_who_is_called_may_leave() -> None:
    async def play() -> None:
        beat, called = Beat(0.001), asyncio.Event()

        def once() -> None:
            beat.leave(once)
            called.set()

        beat.join(once)
        await called.wait()
        called.clear()
        beat.join(once)  # and may come again
        await called.wait()

    asyncio.run(play())

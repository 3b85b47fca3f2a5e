"""Time limits hold whatever the limited work does."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from polydev.errors import VmError
from polydev.vm import cancel_on_timeout
from polydev.vm.cancel_on_timeout import limited, within


async def forever() -> None:
    await asyncio.Event().wait()


release = asyncio.Event()


async def stubborn() -> None:
    while not release.is_set():
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


def test_result_and_errors_are_passed_on() -> None:
    async def good() -> int:
        return 7

    async def bad() -> int:
        raise KeyError("its own")

    assert asyncio.run(within(9, good(), "it")) == 7
    with pytest.raises(KeyError):
        asyncio.run(within(9, bad(), "it"))


def test_work_beyond_its_time_is_cancelled_and_reported() -> None:
    with pytest.raises(VmError, match=r"the stop did not end within 0\.01 s"):
        asyncio.run(within(0.01, forever(), "the stop"))


def test_work_that_ignores_cancellation_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancel_on_timeout, "ENDING_SECONDS", 0.01)

    async def scenario() -> None:
        release.clear()
        with pytest.raises(VmError):
            await within(0.01, stubborn(), "it")
        release.set()

    asyncio.run(scenario())


def test_cancelling_the_caller_ends_the_work() -> None:
    async def scenario() -> None:
        ended = asyncio.Event()

        async def work() -> None:
            try:
                await forever()
            finally:
                for _ in range(5):  # its cleanup takes a while, too
                    await asyncio.sleep(0)
                ended.set()

        task = asyncio.create_task(within(60, work(), "it"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(scenario())


def test_work_beyond_its_time_is_a_timeout() -> None:
    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(limited(0.01, forever()))


@pytest.mark.parametrize("steps", range(6))
def test_caller_that_is_cancelled_as_its_work_ends_is_cancelled(steps: int) -> None:
    """A loop that lost its cancellation would never end, nor would the service around it."""

    async def scenario() -> None:
        happened = asyncio.Event()

        async def loop() -> None:
            while True:
                with suppress(asyncio.TimeoutError):
                    await limited(60, happened.wait())
                happened.clear()

        task = asyncio.create_task(loop())
        for _ in range(10):
            await asyncio.sleep(0)
        happened.set()
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert task.cancelled()

    asyncio.run(scenario())

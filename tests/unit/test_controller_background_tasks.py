"""Background work: restarted when it fails, and ended completely."""

from __future__ import annotations

import asyncio

import pytest

from polydev.controller import background_tasks
from polydev.controller.background_tasks import Background


def test_failed_work_restarts_and_finished_work_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_tasks, "RESTART_SECONDS", 0)
    tries: list[str] = []

    async def scenario() -> None:
        third = asyncio.Event()

        async def failing() -> None:
            tries.append("failing")
            if tries.count("failing") == 3:
                third.set()
            raise RuntimeError("once more")

        async def done() -> None:
            tries.append("done")

        work = Background({"failing": failing, "done": done})
        work.begin()
        await asyncio.wait_for(third.wait(), 60)
        await work.end()

    asyncio.run(scenario())
    assert tries.count("done") == 1


def test_every_call_of_end_waits_until_the_work_ended() -> None:
    async def scenario() -> None:
        begun, may_end = asyncio.Event(), asyncio.Event()
        ended: list[str] = []

        async def tidy() -> None:
            try:
                begun.set()
                await asyncio.Event().wait()
            finally:
                await may_end.wait()
                ended.append("tidy")

        work = Background({"tidy": tidy})
        work.begin()
        await begun.wait()
        ends = [asyncio.create_task(work.end()) for _ in range(2)]
        for _ in range(5):
            await asyncio.sleep(0)
        assert not any(end.done() for end in ends)
        may_end.set()
        await asyncio.gather(*ends)
        assert ended == ["tidy"]

    asyncio.run(scenario())


def test_background_without_start_can_be_ended() -> None:
    asyncio.run(Background({}).end())

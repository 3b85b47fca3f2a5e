"""One cached answer for all callers at about the same time."""

from __future__ import annotations

import asyncio

import pytest

from polydev.controller.host.cached_call import CachedCall
from tests.stores import run_async


class Question:
    """A call that counts its runs and returns once `let_go` is set."""

    def __init__(self) -> None:
        self.asked = 0
        self.at = 0.0
        self.let_go = asyncio.Event()
        self.fails = False

    async def __call__(self) -> int:
        self.asked += 1
        await self.let_go.wait()
        if self.fails:
            raise OSError("broken")
        return self.asked

    def clock(self) -> float:
        return self.at


@run_async
async def test_concurrent_callers_share_one_answer() -> None:
    question = Question()
    shared = CachedCall(question, 2.0, question.clock)
    waiting = [asyncio.ensure_future(shared()) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    question.let_go.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert found[1:] == [1] * 4
    question.at = 1.9
    assert await shared() == 1
    question.at = 2.0
    assert await shared() == 2


@run_async
async def test_failures_are_not_cached() -> None:
    question = Question()
    question.fails = True
    question.let_go.set()
    shared = CachedCall(question, 2.0, question.clock)
    with pytest.raises(OSError, match="broken"):
        await shared()
    question.fails = False
    assert await shared() == 2

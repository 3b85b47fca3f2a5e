"""A shared poller runs from its first user to its last, in a context of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar

import pytest
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from polydev.controller.poll_while_needed import SharedPoller

PATIENCE_SECONDS = 60
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="none")


class Polls:
    """A poll that counts its runs, awaits `go_on` and raises `error`."""

    def __init__(self) -> None:
        self.begun = 0
        self.finished = 0
        self.error: Exception | None = None
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.changed = asyncio.Event()
        self.request_ids: list[str] = []

    async def __call__(self) -> None:
        self.begun += 1
        self.request_ids.append(REQUEST_ID.get())
        self.changed.set()
        await self.go_on.wait()
        self.finished += 1
        self.changed.set()
        if self.error is not None:
            raise self.error

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), PATIENCE_SECONDS)


def run(scenario: Callable[[Polls, SharedPoller], Awaitable[None]]) -> None:
    async def play() -> None:
        polls = Polls()
        await scenario(polls, SharedPoller("tests", polls, lambda: asyncio.sleep(0)))

    asyncio.run(play())


def test_polling_runs_from_the_first_to_the_last_user() -> None:
    async def scenario(polls: Polls, poller: SharedPoller) -> None:
        assert not poller.is_in_use
        with poller.in_use():
            with poller.in_use():
                await polls.until(lambda: polls.finished >= 2)
            assert poller.is_in_use
            await polls.until(lambda: polls.finished >= 4)
        assert not poller.is_in_use
        begun = polls.begun
        await asyncio.sleep(0.02)
        assert polls.begun == begun
        with poller.in_use():
            await polls.until(lambda: polls.begun > begun)

    run(scenario)


def test_all_users_share_one_task() -> None:
    async def scenario(polls: Polls, poller: SharedPoller) -> None:
        polls.go_on.clear()
        with poller.in_use(), poller.in_use(), poller.in_use():
            await polls.until(lambda: polls.begun > 0)
            await asyncio.sleep(0.02)
            assert polls.begun == 1

    run(scenario)


def test_running_poll_is_completed_after_the_last_user() -> None:
    async def scenario(polls: Polls, poller: SharedPoller) -> None:
        polls.go_on.clear()
        with poller.in_use():
            await polls.until(lambda: polls.begun == 1)
        await asyncio.sleep(0)
        polls.go_on.set()
        await polls.until(lambda: polls.finished == 1)

    run(scenario)


def test_polls_do_not_inherit_the_request_context() -> None:
    async def scenario(polls: Polls, poller: SharedPoller) -> None:
        REQUEST_ID.set("of the first user")
        with poller.in_use():
            await polls.until(lambda: polls.begun > 0)
        assert polls.request_ids[0] == "none"

    run(scenario)


@pytest.mark.parametrize(
    ("error", "level"),
    [(OperationalError("SELECT secret", {}, Exception()), "warning"), (KeyError("x"), "error")],
)
def test_repeated_error_is_logged_once(error: Exception, level: str) -> None:
    async def scenario(polls: Polls, poller: SharedPoller) -> None:
        polls.error = error
        with capture_logs() as logs, poller.in_use():
            await polls.until(lambda: polls.finished >= 3)
            assert [(each["event"], each["log_level"]) for each in logs] == [("poll_failed", level)]
            assert logs[0]["poller"] == "tests"
            assert level == "error" or "secret" not in str(logs)
            polls.error = None
            await polls.until(lambda: polls.finished >= 5)
            polls.error = error
            await polls.until(lambda: polls.finished >= 8)
            assert len(logs) == 2

    run(scenario)

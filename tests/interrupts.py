"""A pytest plugin: Ctrl-C ends the run, whatever the present test does with it."""

from __future__ import annotations

import signal
from types import FrameType


def pytest_configure() -> None:
    # If the tests run as a background job, SIGINT is ignored, and so it would be by every
    # process that they start and interrupt. It is not Python's own handler: in its place
    # asyncio.run has one that only cancels the test, which may take that for something else.
    signal.signal(signal.SIGINT, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt

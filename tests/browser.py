"""One Chromium, in one event loop, for all tests of pages in a process: a start takes a second.

@in_browser
async def test_of_a_page() -> None:
    async with chromium() as browser:
        page = await browser.new_page()
"""

from __future__ import annotations

import asyncio
import atexit
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from playwright.async_api import Browser, Playwright, async_playwright

CHROMIUM = Path(__file__).with_name("chromium_on_a_steady_network.py")
# As root Chromium has no sandbox; /dev/shm is small in containers.
OPTIONS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]

P = ParamSpec("P")
T = TypeVar("T")


class BrowserLoop:
    """An event loop that outlives scenarios, for Playwright's objects belong to one loop."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._playwright: Playwright | None = None
        self._browser: Browser | None = None

    def run(self, scenario: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(self._alone(scenario))

    async def browser(self) -> Browser:
        """Return the browser, started anew where it has ended."""
        assert asyncio.get_running_loop() is self._loop, "run this by run_in_browser"
        if self._playwright is None:
            self._playwright = await async_playwright().start()
            atexit.register(self._close)
        if self._browser is None or not self._browser.is_connected():
            launching = self._playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
            self._browser = await launching
        return self._browser

    async def _alone(self, scenario: Coroutine[Any, Any, T]) -> T:
        """Run a scenario and cancel the tasks that it leaves behind, as `asyncio.run` does."""
        await self.browser()
        others = asyncio.all_tasks()  # this one, and those of Playwright
        try:
            return await scenario
        finally:
            left = asyncio.all_tasks() - others
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    def _close(self) -> None:
        async def end() -> None:
            if self._browser is not None:
                await self._browser.close()
            if self._playwright is not None:
                await self._playwright.stop()

        self._loop.run_until_complete(end())


_loop = functools.cache(BrowserLoop)


def run_in_browser(scenario: Coroutine[Any, Any, T]) -> T:
    """Run a scenario to its end in the loop of the browser."""
    return _loop().run(scenario)


def in_browser(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Make a coroutine a test that runs in the loop of the browser."""

    @functools.wraps(test)
    def in_loop(*args: P.args, **kwargs: P.kwargs) -> None:
        run_in_browser(test(*args, **kwargs))

    return in_loop


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Yield the browser; close the contexts that a scenario opened in it."""
    browser = await _loop().browser()
    try:
        yield browser
    finally:
        for context in browser.contexts:
            await context.close()

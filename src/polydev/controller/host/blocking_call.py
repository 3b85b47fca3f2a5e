"""Calls of functions that may block, such as one that reads a disk that hangs, with a timeout.

Each call runs in a thread of its own; callers that come meanwhile wait for the same result. The
threads are daemons: one that hangs for good does not keep the service from ending or other calls
from running, as it would in the event loop's thread pool.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

T = TypeVar("T")

TIMEOUT_SECONDS = 5.0


class NoAnswer(Exception):
    """A call did not end in time, or it failed; the message says why."""


class BlockingCall(Generic[T]):
    def __init__(self, ask: Callable[[], T], timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._ask = ask
        self._timeout_seconds = timeout_seconds
        self._under_way: asyncio.Future[T] | None = None

    @property
    def is_under_way(self) -> bool:
        return self._under_way is not None and not self._under_way.done()

    async def __call__(self) -> T:
        """Return the function's result. Raises NoAnswer."""
        if self._under_way is None or not self.is_under_way:
            self._under_way = _call_in_thread(self._ask)
        answer = self._under_way
        done, _ = await asyncio.wait({answer}, timeout=self._timeout_seconds)
        if not done:
            raise NoAnswer(f"no answer within {self._timeout_seconds:g} s")
        try:
            return answer.result()
        except Exception as error:
            raise NoAnswer(_reason(error)) from error


def _call_in_thread(ask: Callable[[], T]) -> asyncio.Future[T]:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()
    # Marks an exception as retrieved, also if nobody waits any more.
    answer.add_done_callback(asyncio.Future.exception)

    def run() -> None:
        try:
            found = ask()
        except Exception as error:
            _settle(loop, answer.set_exception, error)
        else:
            _settle(loop, answer.set_result, found)

    threading.Thread(target=run, name="host-probe", daemon=True).start()
    return answer


def _settle(loop: asyncio.AbstractEventLoop, settle: Callable[[Any], None], found: Any) -> None:
    with suppress(RuntimeError):  # the event loop has ended, and nobody waits
        loop.call_soon_threadsafe(settle, found)


def _reason(error: Exception) -> str:
    said = getattr(error, "strerror", None) or str(error)
    return str(said) or type(error).__name__

"""Asks what may block, such as a disk or a resolver that hangs, without waiting for it for ever.

Each question has a thread of its own while it is asked, and one only: whoever asks meanwhile
waits for the same answer. The threads are daemons, so that one that hangs for good keeps neither
the service from ending nor others from being asked, as it would in the loop's own pool.
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
    """There is no answer: not in time, or the question failed. Says why."""


class BlockingCall(Generic[T]):
    def __init__(self, ask: Callable[[], T], timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._ask = ask
        self._timeout_seconds = timeout_seconds
        self._under_way: asyncio.Future[T] | None = None

    @property
    def is_under_way(self) -> bool:
        return self._under_way is not None and not self._under_way.done()

    async def __call__(self) -> T:
        """The answer. Raises NoAnswer."""
        if self._under_way is None or not self.is_under_way:
            self._under_way = _answer_of(self._ask)
        answer = self._under_way
        done, _ = await asyncio.wait({answer}, timeout=self._timeout_seconds)
        if not done:
            raise NoAnswer(f"no answer within {self._timeout_seconds:g} s")
        try:
            return answer.result()
        except Exception as error:
            raise NoAnswer(_reason(error)) from error


def _answer_of(ask: Callable[[], T]) -> asyncio.Future[T]:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()
    answer.add_done_callback(asyncio.Future.exception)  # seen, also if nobody waits any more

    def work() -> None:
        try:
            found = ask()
        except Exception as error:
            _tell(loop, answer.set_exception, error)
        else:
            _tell(loop, answer.set_result, found)

    threading.Thread(target=work, name="host-probe", daemon=True).start()
    return answer


def _tell(loop: asyncio.AbstractEventLoop, settle: Callable[[Any], None], found: Any) -> None:
    with suppress(RuntimeError):  # the loop has ended, and nobody waits
        loop.call_soon_threadsafe(settle, found)


def _reason(error: Exception) -> str:
    said = getattr(error, "strerror", None) or str(error)
    return str(said) or type(error).__name__

"""A host's lock that somebody else holds, waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from polydev.errors import LockHeld

PAUSE_SECONDS = 2.0
T = TypeVar("T")


def when_free(take: Callable[[], T], seconds: float, say: Callable[[str], None]) -> T:
    """Take a lock, trying again for so long while it is held; who holds it is said once.

    Raises LockHeld where it is still held then.
    """
    deadline = time.monotonic() + seconds
    try:
        return take()
    except LockHeld as held:
        if seconds <= 0:
            raise
        say(f"waiting up to {seconds:g} s: {held.message}")
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(PAUSE_SECONDS, left))
        with suppress(LockHeld):
            return take()
    return take()

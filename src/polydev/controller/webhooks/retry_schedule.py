"""Choose when to try a delivery again, as Standard Webhooks recommends. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

_MINUTE, _HOUR = 60.0, 3600.0
# Pauses between attempts. The last attempt is made after a bit more than three days.
PAUSES_SECONDS = (
    *(5.0, 5 * _MINUTE, 30 * _MINUTE),
    *(2 * _HOUR, 5 * _HOUR, 10 * _HOUR, 14 * _HOUR, 20 * _HOUR, 24 * _HOUR),
)
# Random share to add, so that deliveries that failed together are not tried again together.
JITTER_SHARE = 0.2
# The longest pause that an endpoint can ask for.
MOST_RETRY_AFTER_SECONDS = 24 * _HOUR


def next_attempt(
    attempts: int, at: datetime, chance: float, retry_after_seconds: float | None = None
) -> datetime | None:
    """Return when a delivery is due after `attempts` attempts; None after the last one.

    `chance` is from 0 to 1.
    """
    if attempts > len(PAUSES_SECONDS):
        return None
    pause = PAUSES_SECONDS[attempts - 1] * (1 + JITTER_SHARE * chance)
    asked = min(retry_after_seconds or 0.0, MOST_RETRY_AFTER_SECONDS)
    return at + timedelta(seconds=max(pause, asked))

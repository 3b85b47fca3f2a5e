"""The difference between a host's clock and this machine's, measured by one exchange. Pure."""

from __future__ import annotations

WARNING_SECONDS = 2.0


def offset_seconds(before: float, after: float, started: float, ended: float) -> float:
    """Return how far the host's clock is ahead of ours, in seconds; negative if it is behind.

    `before` and `after` are our times around the exchange, `started` and `ended` the host's
    within it. The result is 0.0 if the clocks may agree.
    """
    earliest, latest = ended - after, started - before
    return 0.0 if earliest <= 0 <= latest else min(earliest, latest, key=abs)


def offset_text(seconds: float) -> str:
    """Return the difference of the clocks as text."""
    return f"{abs(seconds):,.0f} s {'ahead of' if seconds > 0 else 'behind'} this machine's"

"""The clock of this machine against a host's, as far as one exchange lets it be known. Pure."""

from __future__ import annotations

WARNING_SECONDS = 2.0


def offset_seconds(before: float, after: float, started: float, ended: float) -> float:
    """How far the host's clock is ahead of ours, in seconds; below 0 where it is behind.

    `before` and `after` are our times around the exchange, `started` and `ended` the host's
    within it. 0.0 where the clocks may agree.
    """
    earliest, latest = ended - after, started - before
    return 0.0 if earliest <= 0 <= latest else min(earliest, latest, key=abs)


def offset_text(seconds: float) -> str:
    """How the host's clock differs from this machine's, for a person."""
    return f"{abs(seconds):,.0f} s {'ahead of' if seconds > 0 else 'behind'} this machine's"

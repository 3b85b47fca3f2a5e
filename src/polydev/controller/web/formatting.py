"""Format sizes, durations, rates and times for pages; pure."""

from __future__ import annotations

from datetime import datetime, timezone
from decimal import ROUND_HALF_UP, Context

MINUTE, HOUR, DAY = 60, 3600, 24 * 3600
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
RATES = ("B/s", "kB/s", "MB/s", "GB/s")
NOTHING = "\u2013"
# As JavaScript's toPrecision rounds.
THREE_DIGITS = Context(prec=3, rounding=ROUND_HALF_UP)


def size_text(count: float | None) -> str:
    """Format bytes in the largest fitting unit: `512 B`, `1.5 GiB`."""
    if count is None:
        return NOTHING
    power = 0
    while count >= 1024 and power < len(UNITS) - 1:
        count /= 1024
        power += 1
    digits = 0 if power < 2 or count >= 100 else 1
    return f"{count:.{digits}f} {UNITS[power]}"


def duration_text(seconds: float | None) -> str:
    """Format seconds in at most two units: `42 s`, `12 min`, `3 h 5 min`, `2 d 4 h`."""
    if seconds is None:
        return NOTHING
    whole = max(0, round(seconds))
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} min"
    if whole < DAY:
        return f"{whole // HOUR} h {whole % HOUR // MINUTE} min"
    return f"{whole // DAY} d {whole % DAY // HOUR} h"


def hours_text(seconds: float | None) -> str:
    """Format seconds as hours: `0.4 h`."""
    return NOTHING if seconds is None else f"{seconds / HOUR:.1f} h"


def percent_text(percent: float | None) -> str:
    return NOTHING if percent is None else f"{percent:.0f} %"


def exact_percent_text(percent: float | None) -> str:
    """Format percent without rounding, to fit a colour that changes at a limit."""
    return NOTHING if percent is None else f"{percent:g} %"


def rate_text(rate: float | None) -> str:
    """Format bytes per second in the largest fitting unit, with three digits: `1.43 MB/s`.

    `rateText` in chart_definitions.js does the same; the cases in tests/unit/scripts/rates.json
    are for both.
    """
    if rate is None:
        return NOTHING
    power = 0
    while rate >= 999.5 and power < len(RATES) - 1:
        rate /= 1000
        power += 1
    digits = THREE_DIGITS.create_decimal_from_float(rate).normalize()
    return f"{digits:f} {RATES[power]}"


def time_attribute(at: datetime) -> str:
    """Format a time for HTML's attribute `datetime`."""
    return at.astimezone(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


def clock_text(at: datetime) -> str:
    """Format the time of day to the second, in UTC."""
    return f"{at.astimezone(timezone.utc):%H:%M:%S}"


def time_text(at: datetime | None) -> str:
    """Format a time to the minute, in UTC."""
    return NOTHING if at is None else f"{at.astimezone(timezone.utc):%Y-%m-%d %H:%M}"

"""A lab is small, and tests ask it for more, and more often, than a user may."""

from __future__ import annotations

slots = 8
journal_max_mib = 64
deadman_seconds = 20
controller = {
    "rate": {
        "requests_per_second": 1000,
        "burst": 1000,
        "starts_per_minute": 60_000,
        "starts_burst": 1000,
    }
}

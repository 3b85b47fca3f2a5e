"""Summary of start times of sessions on a host, as medians and ratios. Pure."""

from __future__ import annotations

from typing import Any

from polydev.client.host_bench import median_of, percentile_95, ratio

# For each ratio: its numerator and denominator.
RATIOS = {
    "pool_start_to_bare_resume": ("pool", "bare"),
    "clone_start_to_bare_resume": ("clone", "bare"),
    "cold_to_pool_start": ("cold", "pool"),
    "cold_to_clone_start": ("cold", "clone"),
}
NAMES = {"bare": "bare_resume", "pool": "pool_start", "clone": "clone_start", "cold": "cold_start"}
WHY_NOT = {"pool": "no VM of the pool was free", "cold": "no cold boot was requested"}
Seconds = dict[str, list[float]]


def summary(seconds: Seconds, first_frame_seconds: Seconds) -> dict[str, Any]:
    """Return medians, 95th percentiles and ratios of medians; null and a reason if missing."""
    medians = {kind: median_of(all_) for kind, all_ in seconds.items()}
    answer: dict[str, Any] = {}
    for kind, name in NAMES.items():
        answer[f"{name}_seconds"] = medians[kind]
        answer[f"{name}_p95_seconds"] = percentile_95(seconds[kind])
    for kind in NAMES:
        answer[f"{kind}_first_frame_seconds"] = median_of(first_frame_seconds[kind])
    missing = {}
    for name, (kind, other) in RATIOS.items():
        answer[name] = ratio(medians[kind], medians[other])
        if answer[name] is None:
            gone = kind if medians[kind] is None else other
            missing[name] = WHY_NOT.get(gone, f"no {NAMES[gone]} was measured")
    all_of = {"seconds": seconds, "all_first_frame_seconds": first_frame_seconds}
    return {**answer, "missing": missing, **all_of}

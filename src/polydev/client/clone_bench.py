"""Summaries of the costs of clones, and of bursts of session starts, with their limits. Pure."""

from __future__ import annotations

from typing import Any

from polydev.client.host_bench import median_of, ratio

MOST_TO_BARE_MEMORY = 1.1
MOST_PRIMED_MEMORY_MB = 80.0
MOST_VIEWED_CPU_PERCENT = 4.0
# A paused VM runs nothing; the kernel may count a moment for itself.
MOST_UNVIEWED_CPU_PERCENT = 0.1
MOST_POOL_BURST_TO_ONE = 6.0
MOST_CLONE_BURST_TO_BARE = 1.5


def clone_summary(found: dict[str, list[float]]) -> dict[str, Any]:
    """Return medians for each kind of VM, and whether they are within limits; null without VMs."""
    medians = {name: median_of(all_) for name, all_ in found.items()}
    compared = ratio(medians["running_memory_mb"], medians["bare_memory_mb"])
    within = {
        "running_to_bare_memory": _within(compared, MOST_TO_BARE_MEMORY),
        "primed_memory_mb": _within(medians["primed_memory_mb"], MOST_PRIMED_MEMORY_MB),
        "viewed_cpu_percent": _within(medians["viewed_cpu_percent"], MOST_VIEWED_CPU_PERCENT),
        "unviewed_cpu_percent": _within(medians["unviewed_cpu_percent"], MOST_UNVIEWED_CPU_PERCENT),
    }
    return {**medians, "running_to_bare_memory": compared, "within_limit": within, "all": found}


def burst_summary(found: dict[str, Any]) -> dict[str, Any]:
    """Compare the last session of a burst with a single start and with as many bare resumes."""
    last = found["seconds"][-1] if found["seconds"] else None
    one = median_of(found.get("one_seconds", []))
    in_turn = round(sum(found["bare_seconds"]), 4) if "bare_seconds" in found else None
    to_one, to_bare = ratio(last, one), ratio(last, in_turn)
    within = {
        "last_to_one_start": _within(to_one, MOST_POOL_BURST_TO_ONE),
        "last_to_bare_resumes": _within(to_bare, MOST_CLONE_BURST_TO_BARE),
        "refused": found["refused"] == 0,
        "in_order": found["in_order"],
    }
    figures = {
        "last_seconds": last,
        "one_start_seconds": one,
        "bare_resumes_seconds": in_turn,
        "last_to_one_start": to_one,
        "last_to_bare_resumes": to_bare,
    }
    running = _running_summary(found["running"]) if found["running"] else None
    return {**found, **figures, "within_limit": within, "running": running}


def _running_summary(running: dict[str, Any]) -> dict[str, Any]:
    return {
        **running,
        "all_memory_mb": round(sum(running["memory_mb"]), 1),
        "all_cpu_percent": round(sum(running["cpu_percent"]), 2),
    }


def _within(value: float | None, most: float) -> bool | None:
    return None if value is None else value <= most

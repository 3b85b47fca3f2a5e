"""Reports of measured clones and bursts."""

from __future__ import annotations

from typing import Any

from polydev.client.clone_bench import burst_summary, clone_summary

CLONES = {
    "bare_memory_mb": [200.0, 210.0, 190.0],
    "running_memory_mb": [215.0, 225.0, 205.0],
    "primed_memory_mb": [81.0],
    "primed_cpu_percent": [0.0],
    "viewed_cpu_percent": [3.0, 5.0],
    "unviewed_cpu_percent": [],
}
BURST: dict[str, Any] = {
    "size": 3,
    "refused": 0,
    "kinds": ["pool"] * 3,
    "in_order": True,
    "seconds": [0.2, 0.5, 0.7],
    "one_seconds": [0.1, 0.1, 0.3],
    "running": None,
}


def test_clone_summary_compares_with_limits() -> None:
    found = clone_summary(CLONES)
    assert found["running_to_bare_memory"] == 1.075
    assert found["within_limit"] == {
        "running_to_bare_memory": True,
        "primed_memory_mb": False,
        "viewed_cpu_percent": True,
        "unviewed_cpu_percent": None,
    }
    assert found["all"] == CLONES


def test_pool_burst_is_compared_with_one_start() -> None:
    found = burst_summary(BURST)
    assert (found["last_seconds"], found["last_to_one_start"]) == (0.7, 7)
    assert found["within_limit"] == {
        "last_to_one_start": False,
        "last_to_bare_resumes": None,
        "refused": True,
        "in_order": True,
    }


def test_clone_burst_is_compared_with_bare_resumes() -> None:
    bare = {"one_seconds": [], "bare_seconds": [0.2, 0.2, 0.2], "refused": 1}
    found = burst_summary({**BURST, **bare})
    assert found["last_to_bare_resumes"] == 1.167
    assert found["within_limit"]["last_to_bare_resumes"]
    assert not found["within_limit"]["refused"]


def test_burst_summary_adds_up_memory_and_cpu() -> None:
    running = {"vms": 2, "up": 2, "memory_mb": [200.0, 220.0], "cpu_percent": [5.0, 7.0]}
    found = burst_summary({**BURST, "running": running})["running"]
    assert (found["all_memory_mb"], found["all_cpu_percent"]) == (420, 12)


def test_refused_burst_has_no_last_start() -> None:
    found = burst_summary({**BURST, "seconds": [], "refused": 3})
    assert (found["last_seconds"], found["last_to_one_start"]) == (None, None)

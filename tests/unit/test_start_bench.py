"""Reports of measured starts."""

from __future__ import annotations

import pytest

from polydev.client.host_bench import percentile_95
from polydev.client.start_bench import summary

SECONDS = {
    "bare": [0.2, 0.2, 0.2],
    "pool": [0.05, 0.1, 0.15],
    "clone": [0.3, 0.4, 0.5],
    "cold": [40.0, 44.0],
}
FRAMES = {"bare": [0.3, 0.5], "pool": [0.2], "clone": [], "cold": []}


def test_ratios_are_of_medians() -> None:
    found = summary(SECONDS, FRAMES)
    assert found["bare_resume_seconds"] == 0.2
    assert found["pool_start_to_bare_resume"] == 0.5
    assert found["clone_start_to_bare_resume"] == 2
    assert found["cold_to_pool_start"] == 420
    assert found["cold_to_clone_start"] == 105
    assert (found["bare_first_frame_seconds"], found["pool_first_frame_seconds"]) == (0.4, 0.2)
    assert found["clone_first_frame_seconds"] is None
    assert found["missing"] == {}
    assert found["seconds"] == SECONDS


def test_unmeasured_values_are_null_with_a_reason() -> None:
    found = summary({**SECONDS, "pool": [], "cold": []}, FRAMES)
    assert found["pool_start_to_bare_resume"] is None
    assert found["pool_start_seconds"] is None
    assert found["clone_start_to_bare_resume"] == 2
    assert found["missing"] == {
        "pool_start_to_bare_resume": "no VM of the pool was free",
        "cold_to_pool_start": "no cold boot was requested",
        "cold_to_clone_start": "no cold boot was requested",
    }


@pytest.mark.parametrize(
    ("values", "expected"), [([], None), ([1.0], 1.0), ([float(n) for n in range(101)], 95.0)]
)
def test_percentile_95_of_values(values: list[float], expected: float | None) -> None:
    assert percentile_95(values) == expected

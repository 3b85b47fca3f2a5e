"""Records of images that are said to be verified, for tests that look at something else."""

from __future__ import annotations

from datetime import datetime, timezone

from polydev.image.record import ImageRecord, Verification


def said_to_be_verified(record: ImageRecord) -> ImageRecord:
    """The record as a passed verification leaves it, though nothing was booted."""
    verification = Verification(
        at=datetime.now(timezone.utc),
        passed=True,
        cause=None,
        hypervisor="none: made for tests",
        accelerator="tcg",
        stage_reached="ready",
        boot_timings_seconds={},
        specs=[],
        seconds=0.0,
    )
    return record.model_copy(update={"verification": verification})

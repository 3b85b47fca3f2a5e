"""Settings of alerts: the thresholds of CPU, memory, disk and temperature, and for how long."""

from __future__ import annotations

from pydantic import Field, model_validator
from typing_extensions import Self

from polydev.controller.settings.shared_types import MOST_SECONDS, Seconds, Section

# Of the critical value that a temperature sensor names: a warning is due above it.
WARM_PERCENT = 80.0


class AlertSettings(Section):
    """Percent at which an alert is raised, and how far below it must come to be cleared.

    Limits of the temperature are fixed percent of the sensor's critical value.
    """

    warning_percent: float = Field(default=70, gt=0, le=100)
    critical_percent: float = Field(default=90, gt=0, le=100)
    hysteresis_percent: float = Field(default=5, ge=0)
    for_seconds: float = Field(default=30, ge=0, le=MOST_SECONDS)
    """How long a value must be above before it counts."""
    failed_boots: int = Field(default=3, ge=1)
    failed_boots_seconds: Seconds = 900

    @model_validator(mode="after")
    def _check_percents(self) -> Self:
        if self.warning_percent >= self.critical_percent:
            raise ValueError("warning_percent must be less than critical_percent")
        if self.hysteresis_percent >= min(self.warning_percent, WARM_PERCENT):
            raise ValueError(
                "hysteresis_percent must be less than warning_percent and less than "
                f"{WARM_PERCENT:g}, or alerts are never cleared"
            )
        return self

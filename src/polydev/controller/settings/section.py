"""The base of all sections of the settings, and the kinds of values that they share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# Ten years and a century: later points in time have no date.
MOST_SECONDS = 10 * 366 * 24 * 3600
MOST_DAYS = 36525
# Anything shorter is done without a pause.
LEAST_SECONDS = 0.001
Seconds = Annotated[float, Field(ge=LEAST_SECONDS, le=MOST_SECONDS)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

"""Settings of the samples of the host's figures."""

from __future__ import annotations

from polydev.controller.settings.shared_types import Seconds, Section


class Sampling(Section):
    """Samples of the host's figures: how often, and how long all, then some of them are kept."""

    every_seconds: Seconds = 10
    whole_seconds: Seconds = 3600
    thinned_every_seconds: Seconds = 60
    keep_seconds: Seconds = 24 * 3600

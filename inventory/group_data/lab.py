"""Values of labs: small hosts with high rate limits, since tests send many requests."""

from __future__ import annotations

import os
from typing import Any

from polydev.client.credentials_key import FILE, ensure_key
from polydev.lab import find
from polydev.settings import Settings

_lab = find(os.environ.get("POLYDEV_LAB", "dev"), Settings.from_environment())

slots = 8
journal_max_mib = 64
# Only this machine reaches the lab, without a proxy.
controller_listen = "0.0.0.0:4000"
# Each lab has its own key, which is removed with the lab.
secrets = {FILE: str(ensure_key(_lab.folder))} if _lab else {}
del _lab  # pyinfra takes all that is left as data
controller: dict[str, Any] = {
    "rate": {
        "requests_per_second": 1000,
        "burst": 1000,
        "starts_per_minute": 60_000,
        "starts_burst": 1000,
        "credentials_per_minute": 60_000,
        "credentials_burst": 1000,
        "failures_per_minute": 60_000,
        "failures_burst": 1000,
    }
}
# Making a template costs a lab the CPU time of a boot.
if os.environ.get("POLYDEV_LAB_TEMPLATES") == "false":
    controller["templates"] = False

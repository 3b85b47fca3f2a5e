"""Names of deployments: when, and of which commit.

They are for people. What was deployed before what is decided by the host's numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from polydev.run import run

PATTERN = re.compile(r"\d{8}_\d{6}-[0-9a-f]{4,40}(-dirty)?")


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


def new_deployment_id(root: Path = Path(), clock: Callable[[], datetime] = utc_now) -> str:
    """`YYYYMMDD_HHMMSS-<short commit>` in UTC; `-dirty` where the checkout has changes."""
    commit = run(["git", "-C", root, "rev-parse", "--short=8", "HEAD"], check=False)
    changes = run(["git", "-C", root, "status", "--porcelain"], check=False)
    short = commit.stdout.strip() if commit.status == 0 else "0000"
    dirty = "-dirty" if changes.stdout.strip() else ""
    return f"{clock():%Y%m%d_%H%M%S}-{short}{dirty}"

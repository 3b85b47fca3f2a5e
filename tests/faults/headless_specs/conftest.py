"""The specs of an image at rest, without those of the desktop."""

from __future__ import annotations

import pytest

# What lies in memory is what the desktop's user has.
DESKTOP = ("vnc", "desktop", "browser", "chromium", "lies_in_memory")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if not any(word in item.name for word in DESKTOP)]

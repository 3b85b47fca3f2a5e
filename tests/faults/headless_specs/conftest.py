"""The specs of an image at rest, without those of the desktop."""

from __future__ import annotations

import pytest

# The folders in memory belong to the user of the desktop.
DESKTOP = ("vnc", "desktop", "browser", "chromium", "are_in_memory")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if not any(word in item.name for word in DESKTOP)]

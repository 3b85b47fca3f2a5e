"""The specs of an image at rest, without those of the desktop."""

from __future__ import annotations

import pytest

DESKTOP = ("vnc", "desktop", "browser", "chromium")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if not any(word in item.name for word in DESKTOP)]

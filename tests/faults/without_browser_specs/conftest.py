"""The specs of an image, without those that look at what its browser does."""

from __future__ import annotations

import pytest

OF_THE_BROWSER = {
    "test_services_have_no_start_limits",
    "test_desktop_runs_unprivileged",
    "test_chromium_keeps_its_sandbox",
    "test_renderers_have_their_own_namespaces",
    "test_screen_shows_the_browser",
    "test_login_reaches_its_page",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if item.name.partition("[")[0] not in OF_THE_BROWSER]

"""The specs of an image, without those that look at what its browser does."""

from __future__ import annotations

import pytest

OF_THE_BROWSER = {
    "test_only_the_host_has_deadlines",
    "test_desktop_runs_unprivileged",
    "test_chromium_keeps_its_sandbox",
    "test_renderers_are_in_namespaces_of_their_own",
    "test_screen_shows_the_browser",
    "test_a_login_comes_to_its_page",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if item.name.partition("[")[0] not in OF_THE_BROWSER]

"""The network of the template maker: one TAP, for any number of templates."""

from __future__ import annotations

import sys

from polydev.processes import run

TWICE = """
from polydev.controller.machines.template_maker import add_tap
add_tap()
add_tap()
"""


def test_tap_is_added_once_per_network_namespace() -> None:
    """/sys keeps showing the former network namespace, so the maker must not rely on it."""
    run(["unshare", "--net", sys.executable, "-c", TWICE])

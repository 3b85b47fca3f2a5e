"""The network of the template maker: one TAP, for any number of templates."""

from __future__ import annotations

import sys

from polydev.run import run

TWICE = """
from polydev.controller.machines.template_maker import add_tap
add_tap()
add_tap()
"""


def test_a_tap_is_added_once_to_a_network_of_ones_own() -> None:
    """/sys keeps showing the network of those that came before."""
    run(["unshare", "--net", sys.executable, "-c", TWICE])

"""Reports of how soon login URLs are known."""

from __future__ import annotations

import pytest

from polydev.client.login_bench import login_summary


@pytest.mark.parametrize(
    ("login", "bare", "compared", "within"),
    [
        ([4.0, 5.0, 6.0], [1.0], 5.0, True),  # soon enough, however fast the tool is
        ([11.0, 12.0, 30.0], [9.0, 10.0, 11.0], 1.2, True),
        ([13.0], [10.0], 1.3, False),
    ],
)
def test_login_summary_compares_with_bare_tool(
    login: list[float], bare: list[float], compared: float, within: bool
) -> None:
    (found,) = login_summary({"codex": {"login": login, "bare": bare}})
    assert (found["tool"], found["login_to_bare"], found["within_limit"]) == (
        "codex",
        compared,
        within,
    )

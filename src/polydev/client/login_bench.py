"""Summary of how soon tools' login URLs are known, with the limit. Pure."""

from __future__ import annotations

from typing import Any

from polydev.client.host_bench import median_of, ratio

ENOUGH_SECONDS = 5.0
MOST_TO_BARE = 1.2


def login_summary(found: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """Return the medians of each tool, and whether they are within the limit.

    A URL is known soon enough after 5 s. Where the tool itself takes longer, such as on an emulated
    CPU, the limit is 1.2 times its own time.
    """
    return [_tool_summary(tool, measured) for tool, measured in found.items()]


def _tool_summary(tool: str, measured: dict[str, list[float]]) -> dict[str, Any]:
    login, bare = median_of(measured["login"]), median_of(measured["bare"])
    compared = ratio(login, bare)
    is_within = (login or 0) <= ENOUGH_SECONDS or (compared or 0) <= MOST_TO_BARE
    return {
        "tool": tool,
        "login_seconds": login,
        "bare_seconds": bare,
        "login_to_bare": compared,
        "within_limit": is_within,
        "all": measured,
    }

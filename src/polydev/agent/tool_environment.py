"""The environment in which a tool logs in, or says whether it is logged in."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from polydev.agent.settings import AgentSettings

KEPT = ("HOME", "DISPLAY", "USER")


def tool_environment(own: Mapping[str, str], settings: AgentSettings) -> dict[str, str]:
    """Return the environment of a tool; our programs come first in its PATH."""
    programs = settings.login_programs
    return {
        **{name: os.environ[name] for name in KEPT if name in os.environ},
        "PATH": f"{programs}:{os.environ.get('PATH', os.defpath)}",
        "LANG": "C.UTF-8",
        "TERM": "xterm-256color",
        "BROWSER": f"{programs}/xdg-open",
        **own,
    }

"""Confirm that a tool is logged in: its credentials file and its status command must agree.

It is imported after the tool has ended, since `shutil` takes long to import.
"""

from __future__ import annotations

import os
import shutil

from polydev.agent import credentials_file
from polydev.agent.errors import CheckFailed
from polydev.agent.providers import tool_environment
from polydev.agent.run_command import output_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from polydev.agent.providers import GuestProvider
    from polydev.agent.reply_types import LoginStatus
    from polydev.agent.settings import AgentSettings


def confirmed(provider: GuestProvider, settings: AgentSettings) -> tuple[LoginStatus, str]:
    """Return "done", or "failed" with the reason."""
    kept, command = provider.credentials, provider.status_command
    try:
        if kept is not None and credentials_file.read(os.environ["HOME"], kept) is None:
            return (
                "failed",
                f"{provider.label} has written no credentials: there is no ~/{kept.file}",
            )
        if command is not None:
            environment = tool_environment(provider.status_environment, settings)
            program = shutil.which(command[0], path=environment["PATH"]) or command[0]
            argv = [program, *command[1:]]
            output_of(argv, settings.login_status_timeout_seconds, environment)
    except CheckFailed as failure:
        return "failed", str(failure)
    return "done", ""

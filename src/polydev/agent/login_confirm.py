"""Confirm that a tool is logged in: its credentials file and its status command must agree.

A login imports it after the tool has ended, since `shutil` takes long to import.
`keep_status` is the program of polydev-login-status@PROVIDER.service.
"""

from __future__ import annotations

import os
import shutil

from polydev.agent import credentials_file
from polydev.agent.errors import CheckFailed
from polydev.agent.login_state import keep_state
from polydev.agent.providers import provider_of
from polydev.agent.run_command import output_of
from polydev.agent.settings import settings_from_arguments
from polydev.agent.tool_environment import tool_environment

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


def keep_status(arguments: list[str]) -> None:
    """Check whether a tool is logged in; its provider is the first argument, settings may follow.

    The result becomes the state of the provider's login.
    """
    settings = settings_from_arguments(arguments[1:])
    provider = provider_of(settings.providers, arguments[0])
    status, detail = confirmed(provider, settings)
    folder = f"{settings.logins}/{provider.name}"
    os.makedirs(folder, exist_ok=True)
    keep_state(folder, status, None, detail)

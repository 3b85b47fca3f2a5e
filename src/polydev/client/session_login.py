"""Wait for the login of a session's tool."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from polydev.client.controller_api import ControllerApi

ASK_SECONDS = 2.0
COMING = {"vm_starting": "the VM boots", "starting": "the tool starts"}


def wait_for_url(
    api: ControllerApi,
    session_id: str,
    say: Callable[[str], None],
    *,
    again: bool = False,
    pause: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Return the login once its URL is known or it is done; `say` gets each state once.

    It needs no time limit, since VMs and tools have theirs. `again` restarts a failed login.
    Raises ControllerRefused with the tool's message if it fails.
    """
    path = f"/api/auth/session/{session_id}/oauth-url"
    login = dict(api.post(path) if again else api.get(path))
    said = ""
    while login["status"] in COMING:
        if login["status"] != said:
            said = login["status"]
            say(COMING[said])
        pause(ASK_SECONDS)
        login = dict(api.get(path))
    return login

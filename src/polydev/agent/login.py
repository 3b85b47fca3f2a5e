"""`/login/PROVIDER`: has systemd start a tool's login, and tells how far that is.

Imported with the first request for a login. The login itself is polydev-login@PROVIDER.service,
which `login_run` is the program of; all that the agent sees of it is the state that it writes.
"""

from __future__ import annotations

import os
from stat import S_ISREG

from polydev.agent.errors import CheckFailed
from polydev.agent.login_state import (
    MAX_STATE_BYTES,
    STATE_FILE,
    bounded_detail,
    login_reply,
    reply_of_state,
)
from polydev.agent.process import output_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from polydev.agent.messages import LoginReply
    from polydev.agent.settings import Settings

NOT_TO_START = ("starting", "waiting", "done")


def current_login(provider: str, settings: Settings) -> LoginReply:
    """How far a provider's login is; starts nothing."""
    state = _bytes_of_state(f"{settings.logins}/{provider}/{STATE_FILE}")
    return reply_of_state(provider, state)


def start_login(provider: str, settings: Settings) -> LoginReply:
    """Start a provider's login unless it is under way or done; tell how far it is.

    The unit counts as started once its state is written, so what is read then is no older
    login's. Two that start at once are one job for systemd.
    """
    before = current_login(provider, settings)
    if before["status"] in NOT_TO_START:
        return before
    unit = f"polydev-login@{provider}.service"
    argv = [settings.systemctl, "start", "--no-ask-password", unit]
    try:
        output_of(argv, settings.login_start_timeout_seconds)
    except CheckFailed as failure:
        return login_reply(provider, "failed", None, bounded_detail(str(failure)))
    return current_login(provider, settings)


def _bytes_of_state(path: str) -> bytes | None:
    """At most one byte more than a state may have; None if there is none.

    The folder belongs to the desktop's user, who may put anything there: no link is followed,
    and nothing that is no file is waited for.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError:
        return b""
    try:
        if not S_ISREG(os.fstat(descriptor).st_mode):
            return b""
        return os.read(descriptor, MAX_STATE_BYTES + 1)
    finally:
        os.close(descriptor)

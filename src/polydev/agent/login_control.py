"""The agent's side of logins: have systemd start a tool's login, and report how far it is.

It is imported with the first request about a login. The login runs in the unit
polydev-login@PROVIDER.service, whose program is `login_program`. The agent reads the state that
this program writes, and writes codes into the FIFO that it reads.
"""

from __future__ import annotations

import os
from stat import S_ISFIFO, S_ISREG
from time import monotonic, sleep

from polydev.agent.errors import CheckFailed, RequestRefused
from polydev.agent.login_state import (
    MAX_STATE_BYTES,
    STATE_FILE,
    bounded_detail,
    login_reply,
    reply_of_state,
)
from polydev.agent.run_command import output_of
from polydev.agent.tool_process import CODE_FIFO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from polydev.agent.providers import GuestProvider
    from polydev.agent.reply_types import LoginReply
    from polydev.agent.settings import AgentSettings

NOT_TO_START = ("starting", "waiting", "done")
MAX_CODE_CHARACTERS = 4096
# Between two tries to start a login whose unit is still ending.
PAUSE_SECONDS = 0.2
# The folder belongs to the desktop's user, who may put anything there: the agent follows no link
# and waits for nothing.
WITHOUT_TRUST = os.O_NOFOLLOW | os.O_NONBLOCK


def current_login(provider: str, settings: AgentSettings) -> LoginReply:
    """Return how far a provider's login is, without starting it."""
    state = _bytes_of_state(f"{settings.logins}/{provider}/{STATE_FILE}")
    return reply_of_state(provider, state)


def start_login(
    provider: str, settings: AgentSettings, *, is_lost: Callable[[], bool] = lambda: False
) -> LoginReply:
    """Start a provider's login unless it runs or is done; return how far it is.

    `is_lost` says whether the credentials of a login that is done are gone: then it starts again.

    The unit counts as started once it has written its state, so the state is not that of an older
    login. For systemd, two starts at the same time are one job.

    The program of an earlier login writes its last state a moment before it ends. Until then its
    unit is active, which a start does not change: so this tries again until the state is a new one.
    """
    earlier = _state_version(provider, settings)
    before = current_login(provider, settings)
    if before["status"] in NOT_TO_START and not (before["status"] == "done" and is_lost()):
        return before
    unit = f"polydev-login@{provider}.service"
    ends = monotonic() + settings.login_start_timeout_seconds
    try:
        systemctl("start", unit, settings.login_start_timeout_seconds, settings)
        while earlier is not None and _state_version(provider, settings) == earlier:
            if (left := ends - monotonic()) <= 0:
                break
            sleep(PAUSE_SECONDS)
            systemctl("start", unit, left, settings)
    except CheckFailed as failure:
        return login_reply(provider, "failed", None, bounded_detail(str(failure)))
    return current_login(provider, settings)


def type_code(provider: GuestProvider, code: str, settings: AgentSettings) -> None:
    """Type a code and Enter into the tool's terminal. Raises RequestRefused."""
    if not (0 < len(code) <= MAX_CODE_CHARACTERS and code.isprintable()):
        why = f"a code is one line of at most {MAX_CODE_CHARACTERS} printable characters"
        raise RequestRefused(400, why)
    if not provider.accepts_code:
        raise RequestRefused(409, f"{provider.label} takes no code")
    if current_login(provider.name, settings)["status"] != "waiting":
        raise RequestRefused(409, f"no login of {provider.label} is waiting for a code")
    _write_line(f"{settings.logins}/{provider.name}/{CODE_FIFO}", code)


def systemctl(verb: str, unit: str, timeout_seconds: float, settings: AgentSettings) -> None:
    """Run systemctl for a unit and wait for its end. Raises CheckFailed with the reason."""
    output_of([settings.systemctl, verb, "--no-ask-password", unit], timeout_seconds)


def _write_line(fifo: str, line: str) -> None:
    data = f"{line}\n".encode("utf-8", "replace")
    try:
        descriptor = os.open(fifo, os.O_WRONLY | WITHOUT_TRUST)
        try:
            is_written = S_ISFIFO(os.fstat(descriptor).st_mode) and (
                os.write(descriptor, data) == len(data)
            )
        finally:
            os.close(descriptor)
    except OSError:
        is_written = False
    if not is_written:
        raise RequestRefused(409, "the login does not take a code now")


def _state_version(provider: str, settings: AgentSettings) -> tuple[int, int] | None:
    """Return what changes with each state that is written; None if there is none."""
    try:
        found = os.lstat(f"{settings.logins}/{provider}/{STATE_FILE}")
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _bytes_of_state(path: str) -> bytes | None:
    """Return at most one byte more than a state may have; None if there is no file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | WITHOUT_TRUST)
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

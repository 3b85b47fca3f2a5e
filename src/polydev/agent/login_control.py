"""The agent's side of logins: have `login_server` start a tool's login, and report how far it is.

It is imported with the first request about a login. The agent asks the server over a socket, reads
the state that the login writes, and writes codes into the FIFO that the login reads.
"""

from __future__ import annotations

import os
from stat import S_ISFIFO, S_ISREG

from polydev.agent.errors import CheckFailed, RequestRefused
from polydev.agent.login_state import (
    MAX_STATE_BYTES,
    STATE_FILE,
    bounded_detail,
    login_reply,
    reply_of_state,
)
from polydev.agent.outgoing_connection import Stream
from polydev.agent.tool_process import CODE_FIFO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from polydev.agent.providers import GuestProvider
    from polydev.agent.reply_types import LoginReply
    from polydev.agent.settings import AgentSettings

NOT_TO_START = ("starting", "waiting", "done")
MAX_CODE_CHARACTERS = 4096
MAX_ANSWER_BYTES = 4096
# The folders belong to the desktop's user, who may put anything there: the agent follows no link
# and waits for nothing.
WITHOUT_TRUST = os.O_NOFOLLOW | os.O_NONBLOCK


def current_login(provider: str, settings: AgentSettings) -> LoginReply:
    """Return how far a provider's login is, without starting it."""
    return reply_of_state(provider, _bytes_of_state(provider, settings))


def start_login(
    provider: str, settings: AgentSettings, *, is_lost: Callable[[], bool] = lambda: False
) -> LoginReply:
    """Start a provider's login unless it runs or is done; return how far it is.

    If it starts, this waits a few seconds for its URL.

    `is_lost` says whether the credentials of a login that is done are gone: then it starts again.
    """
    before = current_login(provider, settings)
    if before["status"] in NOT_TO_START and not (before["status"] == "done" and is_lost()):
        return before
    try:
        ask_login_server("start", provider, settings, settings.login_url_wait_seconds)
    except CheckFailed as failure:
        return login_reply(provider, "failed", None, bounded_detail(str(failure)))
    return current_login(provider, settings)


def ask_login_server(
    verb: str, provider: str, settings: AgentSettings, wait_seconds: float = 0.0
) -> None:
    """Have `login_server` start or stop a login; returns once that is so. Raises CheckFailed.

    A login that was started keeps the connection open until its first state after "starting";
    `wait_seconds` is how long to wait for that.
    """
    with Stream(settings.logins_socket, settings.login_start_timeout_seconds) as stream:
        stream.send(f"{verb} {provider}\n".encode())
        answer = stream.read_through(b"\n", MAX_ANSWER_BYTES, "an answer")
        if wait_seconds:
            stream.wait_until_closed(wait_seconds)
    if problem := str(answer, "utf-8", "replace").strip():
        raise CheckFailed(problem)


def type_code(provider: GuestProvider, code: str, settings: AgentSettings) -> None:
    """Type a code and Enter into the tool's terminal. Raises RequestRefused."""
    if not (0 < len(code) <= MAX_CODE_CHARACTERS and code.isprintable()):
        why = f"a code is one line of at most {MAX_CODE_CHARACTERS} printable characters"
        raise RequestRefused(400, why)
    if not provider.accepts_code:
        raise RequestRefused(409, f"{provider.label} takes no code")
    if current_login(provider.name, settings)["status"] != "waiting":
        raise RequestRefused(409, f"no login of {provider.label} is waiting for a code")
    _write_line(provider.name, code, settings)


def _write_line(provider: str, line: str, settings: AgentSettings) -> None:
    data = f"{line}\n".encode("utf-8", "replace")
    try:
        descriptor = _opened(provider, CODE_FIFO, os.O_WRONLY, settings)
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


def _bytes_of_state(provider: str, settings: AgentSettings) -> bytes | None:
    """Return at most one byte more than a state may have; None if there is no file."""
    try:
        descriptor = _opened(provider, STATE_FILE, os.O_RDONLY, settings)
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


def _opened(provider: str, name: str, flags: int, settings: AgentSettings) -> int:
    """Open a file in a provider's folder."""
    folder = os.open(f"{settings.logins}/{provider}", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        return os.open(name, flags | WITHOUT_TRUST, dir_fd=folder)
    finally:
        os.close(folder)

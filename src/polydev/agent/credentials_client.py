"""The agent's side of credentials: the program of the user reads, writes and removes them."""

from __future__ import annotations

import json
from threading import Lock

from polydev.agent.credentials_file import check
from polydev.agent.errors import CheckFailed, RequestRefused
from polydev.agent.login_control import ask_login_server, current_login
from polydev.agent.outgoing_connection import Stream
from polydev.agent.run_command import output_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from polydev.agent.providers import GuestProvider
    from polydev.agent.reply_types import LoginReply
    from polydev.agent.settings import AgentSettings

# Each byte of credentials can take six in JSON.
MAX_ANSWER_BYTES = 6 * 64 * 1024 + 1024
_one_at_a_time = Lock()
_given: dict[str, int] = {}  # by provider, the hash of the credentials that were given last


def read_credentials(provider: GuestProvider, settings: AgentSettings) -> dict[str, object]:
    """Return the credentials of a finished login. Raises RequestRefused if there are none.

    Raises CheckFailed if the file is not valid.
    """
    if not _is_done(provider, settings):
        raise RequestRefused(404, f"{provider.label} is not logged in")
    found = _asked("read", provider, settings)
    if found is None:
        raise RequestRefused(404, f"there are no credentials of {provider.label}")
    return found


def lost_credentials(provider: GuestProvider, settings: AgentSettings) -> bool:
    """Return whether a provider's credentials are not there, or not valid."""
    if provider.credentials is None:
        return False
    try:
        return _asked("read", provider, settings) is None
    except CheckFailed:
        return True
    except RequestRefused:  # nobody can say
        return False


def remove_credentials(provider: GuestProvider, settings: AgentSettings) -> None:
    """Remove the credentials of a login. Raises CheckFailed if that is not possible."""
    with _one_at_a_time:
        _asked("remove", provider, settings)


def inject(provider: GuestProvider, value: object, settings: AgentSettings) -> LoginReply:
    """Give the tool credentials, and ask it whether it accepts them.

    If the same credentials are sent twice at the same time, only the first ones are written, since
    the tool may have used their refresh token.

    Raises RequestRefused with the tool's own message if it does not accept them, after removing
    them. Raises CheckFailed, without changing anything, if they cannot be the tool's credentials.
    """
    if provider.credentials is not None:
        check(value, provider.credentials)
    given, was_done = hash(json.dumps(value)), _is_done(provider, settings)
    with _one_at_a_time:
        is_repeated = _given.get(provider.name) == given and not was_done
        if is_repeated and _is_done(provider, settings):
            return current_login(provider.name, settings)
        _given[provider.name] = given
        _stop_login(provider, settings)
        _asked("write", provider, settings, value)
        _check_status(provider, settings)
        reply = current_login(provider.name, settings)
        if reply["status"] != "done":
            _asked("remove", provider, settings)
            raise RequestRefused(422, reply["detail"])
    return reply


def _is_done(provider: GuestProvider, settings: AgentSettings) -> bool:
    return current_login(provider.name, settings)["status"] == "done"


def _stop_login(provider: GuestProvider, settings: AgentSettings) -> None:
    try:
        ask_login_server("stop", provider.name, settings)
    except CheckFailed as failure:
        raise RequestRefused(503, str(failure)) from failure


def _check_status(provider: GuestProvider, settings: AgentSettings) -> None:
    """Have the tool's status command run; its result becomes the state of the login."""
    unit = f"polydev-login-status@{provider.name}.service"
    timeout_seconds = settings.login_status_timeout_seconds + settings.login_start_timeout_seconds
    try:
        output_of([settings.systemctl, "start", "--no-ask-password", unit], timeout_seconds)
    except CheckFailed as failure:
        raise RequestRefused(503, str(failure)) from failure


def _asked(
    verb: str, provider: GuestProvider, settings: AgentSettings, value: object = None
) -> dict[str, object] | None:
    request = {"verb": verb, "provider": provider.name, "credentials": value}
    try:
        with Stream(settings.credentials_socket, settings.credentials_timeout_seconds) as stream:
            stream.send(json.dumps(request).encode() + b"\n")
            answer = json.loads(stream.read_through(b"\n", MAX_ANSWER_BYTES, "an answer"))
        problem, found = answer.get("problem"), answer.get("value")
    except (CheckFailed, ValueError, RecursionError, AttributeError) as failure:
        raise RequestRefused(
            503, f"polydev-credentials@.service does not answer: {failure}"
        ) from failure
    if problem is not None:
        raise CheckFailed(str(problem))
    if not isinstance(found, dict | None):
        raise RequestRefused(503, "cannot read the answer of polydev-credentials@.service")
    return found

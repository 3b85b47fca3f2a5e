"""The agent's side of credentials: has them read, written and removed by the user's own program."""

from __future__ import annotations

import json
from threading import Lock

from polydev.agent.credentials_file import check
from polydev.agent.errors import CheckFailed, RequestRefused
from polydev.agent.login_service import current_login, systemctl
from polydev.agent.stream import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from polydev.agent.providers import GuestProvider
    from polydev.agent.reply_types import LoginReply
    from polydev.agent.settings import AgentSettings

# Each byte of credentials can take six in JSON.
MAX_ANSWER_BYTES = 6 * 64 * 1024 + 1024
_one_at_a_time = Lock()
_given: dict[str, int] = {}  # by provider, a hash of those that were given last


def read_credentials(provider: GuestProvider, settings: AgentSettings) -> dict[str, object]:
    """Return the credentials of a login that is done. Raises RequestRefused where there are none.

    Raises CheckFailed where the file is not as it should be.
    """
    if not _is_done(provider, settings):
        raise RequestRefused(404, f"{provider.label} is not logged in")
    found = _asked("read", provider, settings)
    if found is None:
        raise RequestRefused(404, f"there are no credentials of {provider.label}")
    return found


def remove_credentials(provider: GuestProvider, settings: AgentSettings) -> None:
    """Remove what the login has left. Raises CheckFailed where something is in the way."""
    with _one_at_a_time:
        _asked("remove", provider, settings)


def inject(provider: GuestProvider, value: object, settings: AgentSettings) -> LoginReply:
    """Give the tool credentials, and ask it whether it takes them.

    Of the same ones asked for twice at once only the first are given: the tool may have used their
    refresh token.

    Raises RequestRefused with the tool's own words if it does not, and they are removed then; and
    CheckFailed for what cannot be the tool's credentials, which changes nothing.
    """
    if provider.credentials is not None:
        check(value, provider.credentials)
    given, was_done = hash(json.dumps(value)), _is_done(provider, settings)
    with _one_at_a_time:
        is_repeated = _given.get(provider.name) == given and not was_done
        if is_repeated and _is_done(provider, settings):
            return current_login(provider.name, settings)
        _given[provider.name] = given
        _systemctl("stop", f"polydev-login@{provider.name}.service", settings)
        _asked("write", provider, settings, value)
        _systemctl("start", f"polydev-login-status@{provider.name}.service", settings)
        reply = current_login(provider.name, settings)
        if reply["status"] != "done":
            _asked("remove", provider, settings)
            raise RequestRefused(422, reply["detail"])
    return reply


def _is_done(provider: GuestProvider, settings: AgentSettings) -> bool:
    return current_login(provider.name, settings)["status"] == "done"


def _systemctl(verb: str, unit: str, settings: AgentSettings) -> None:
    timeout_seconds = settings.login_status_timeout_seconds + settings.login_start_timeout_seconds
    try:
        systemctl(verb, unit, timeout_seconds, settings)
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
            503, f"the program of credentials does not answer: {failure}"
        ) from failure
    if problem is not None:
        raise CheckFailed(str(problem))
    if not isinstance(found, dict | None):
        raise RequestRefused(503, "the answer of the program of credentials cannot be read")
    return found

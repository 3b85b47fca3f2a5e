"""`/login/…`: the login of a tool, codes for it, and the credentials that it made.

Only the host may ask: a request from within the VM could come from any page or program of its user.
"""

from __future__ import annotations

import json
from functools import partial

from polydev.agent.credentials_client import (
    inject,
    lost_credentials,
    read_credentials,
    remove_credentials,
)
from polydev.agent.errors import CheckFailed, RequestRefused
from polydev.agent.http_messages import HttpReply, HttpRequest, json_reply, problem
from polydev.agent.login_control import current_login, start_login, type_code
from polydev.agent.providers import GuestProvider, known_providers, provider_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from polydev.agent.reply_types import CredentialsReply
    from polydev.agent.settings import AgentSettings

METHODS = {
    "": ("GET", "HEAD", "POST"),
    "code": ("POST",),
    "credentials": ("GET", "PUT", "DELETE"),
}


def answer_login(request: HttpRequest, rest: str, settings: AgentSettings) -> HttpReply:
    """Return the reply to a request for `/login/` and the rest of its path."""
    if request.is_from_guest:
        return problem(403, "only the host asks for logins")
    name, _, what = rest.partition("/")
    if name not in (known := known_providers(settings.providers)) or what not in METHODS:
        return problem(404, f"there is no login of {rest}; there are {', '.join(known)}")
    if request.method not in METHODS[what]:
        allow = ", ".join(METHODS[what])
        return problem(405, f"{request.method} is not allowed here", {"Allow": allow})
    provider = provider_of(settings.providers, name)
    try:
        if what == "":
            if request.method != "POST":
                return json_reply(200, current_login(name, settings))
            is_lost = partial(lost_credentials, provider, settings)
            return json_reply(200, start_login(name, settings, is_lost=is_lost))
        if what == "code":
            return _typed(provider, request, settings)
        return _credentials(provider, request, settings)
    except RequestRefused as refusal:
        return problem(refusal.status, refusal.why)
    except CheckFailed as failure:
        return problem(422, str(failure))


def _typed(provider: GuestProvider, request: HttpRequest, settings: AgentSettings) -> HttpReply:
    code = _member(request, "code", str)
    type_code(provider, str(code), settings)
    return json_reply(202, current_login(provider.name, settings))


def _credentials(
    provider: GuestProvider, request: HttpRequest, settings: AgentSettings
) -> HttpReply:
    if provider.credentials is None:
        return problem(404, f"credentials of {provider.label} are not handed over")
    if request.method == "GET":
        found = read_credentials(provider, settings)
        reply: CredentialsReply = {"provider": provider.name, "credentials": found}
        return json_reply(200, reply)
    if request.method == "PUT":
        return json_reply(200, inject(provider, _member(request, "credentials", dict), settings))
    remove_credentials(provider, settings)
    return HttpReply(204, "")


def _member(request: HttpRequest, name: str, kind: type) -> object:
    """Return a member of the JSON object in the request's body."""
    try:
        body = json.loads(request.body)
    except (ValueError, RecursionError):
        body = None
    value = body.get(name) if isinstance(body, dict) else None
    if not isinstance(value, kind):
        raise RequestRefused(400, f'the body is a JSON object with "{name}"')
    return value

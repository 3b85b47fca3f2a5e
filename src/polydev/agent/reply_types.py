"""The types of the agent's JSON replies, for the host (for instance with pydantic's TypeAdapter).

The guest never imports this module: `typing` alone takes longer to import than the rest of the
agent.
"""

from __future__ import annotations

import sys
from typing import Literal

if sys.version_info >= (3, 12):
    from typing import TypedDict
else:  # pydantic takes no other TypedDict before Python 3.12
    from typing_extensions import TypedDict

Status = Literal["ready", "starting", "failed"]
Stage = Literal["kernel", "init", "network", "services", "ready"]
LoginStatus = Literal["none", "starting", "waiting", "done", "failed"]


class ComponentState(TypedDict):
    """Whether a part of the desktop works, and what was found if not."""

    ok: bool
    detail: str


class ServiceState(TypedDict):
    """A unit in systemd's words; "unknown" if systemctl did not answer."""

    active: str
    sub: str
    result: str
    restarts: int


class HealthReply(TypedDict):
    """Body of `GET /health`: 200 if the status is "ready", else 503 with the same form."""

    status: Status
    stage: Stage
    components: dict[str, ComponentState]
    failing: list[str]
    services: dict[str, ServiceState]
    failed_units: list[str]
    image_digest: str | None
    vm_id: str | None
    session_id: str | None
    uptime_seconds: float
    boot_id: str
    agent_version: str


class LoginReply(TypedDict):
    """Body of `GET /login/{provider}` (only reads) and `POST` (starts the login if necessary).

    `url` is the page of the login, once known: an http or https URL of at most 4096 characters. The
    VM's browser shows it, and it leads back to the tool in the VM. `device_code` is the code that
    the page asks for, if the tool printed one. The status is "done" once both the tool's status
    command and its credentials file confirm it. `detail` says why a login failed, or why the
    browser does not show the page; at most 1 KiB.
    """

    provider: str
    status: LoginStatus
    url: str | None
    device_code: str | None
    detail: str


class CredentialsReply(TypedDict):
    """Body of `GET /login/{provider}/credentials`: the JSON object that the tool keeps."""

    provider: str
    credentials: dict[str, object]


class IndexReply(TypedDict):
    """Body of `GET /`."""

    name: str
    agent_version: str
    paths: dict[str, str]


class ProblemReply(TypedDict):
    """Body of every refusal (RFC 9457, application/problem+json)."""

    type: str
    title: str
    status: int
    detail: str

"""The agent's replies, as the host reads them (for instance with pydantic's TypeAdapter).

Inside the guest this module is only ever seen by the type checker: `typing` would cost more
start-up time than the rest of the agent together.
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
    """Does this part of the desktop do its work, and if not, what is seen instead?"""

    ok: bool
    detail: str


class ServiceState(TypedDict):
    """A systemd unit in systemd's words; "unknown" where systemctl did not tell."""

    active: str
    sub: str
    result: str
    restarts: int


class HealthReply(TypedDict):
    """Body of `GET /health`: 200 when the status is "ready", 503 with the same shape when not."""

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
    """Body of `GET /login/{provider}` (looks only) and `POST` (starts the login if need be).

    `url` is where the login is, once known: an http or https URL of at most 4096 characters.
    It is shown in the VM's browser, and leads back to the tool in there. `device_code` is what its
    page asks for, where the tool printed one. The status is "done" once both the tool's status
    command and its credentials file say so. `detail` says why a login failed, or why the browser
    does not show it; at most 1 KiB.
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

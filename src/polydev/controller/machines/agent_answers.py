"""The answers of the agents in VMs, checked. A VM belongs to its user, so texts are limited."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from polydev.controller.credential_encryption import MAX_CREDENTIALS_BYTES, compact_json
from polydev.controller.session_and_vm_states import LoginStatus
from polydev.errors import ProtocolError
from polydev.vm.boot_stages import printable

MAX_URL_CHARACTERS = 4096
MAX_DETAIL_CHARACTERS = 1024
MAX_PLACE_CHARACTERS = 128  # comes from the guest
Reply = TypeVar("Reply", bound=BaseModel)
STATUS_OF = {200: ("ready",), 503: ("starting", "failed")}


class ComponentHealth(BaseModel):
    model_config = ConfigDict(frozen=True)

    ok: bool
    detail: str


class ServiceHealth(BaseModel):
    """A unit of the guest, as its systemd reports it."""

    model_config = ConfigDict(frozen=True)

    active: str


class AgentHealth(BaseModel):
    """The agent's answer to `GET /health`, as far as the controller uses it."""

    model_config = ConfigDict(frozen=True)

    status: Literal["ready", "starting", "failed"]
    stage: Literal["kernel", "init", "network", "services", "ready"]
    components: Mapping[str, ComponentHealth]
    services: Mapping[str, ServiceHealth] = {}
    failing: tuple[str, ...]
    failed_units: tuple[str, ...]
    vm_id: str | None
    session_id: str | None = None
    image_digest: str | None = None
    uptime_seconds: float | None = None


def _web_address(url: str) -> str:
    """Pages offer it as a link, so only http and https are allowed."""
    parts = urlsplit(url)
    is_plain = url.isprintable() and " " not in url and "\\" not in url and "@" not in parts.netloc
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_plain:
        raise ValueError("is not a web address")
    if parts.port == 0:  # reading the port raises ValueError for one that is no number
        raise ValueError("is not a web address")
    return url


WebAddress = Annotated[str, Field(max_length=MAX_URL_CHARACTERS), AfterValidator(_web_address)]


class AgentLogin(BaseModel):
    """The state of a tool's login.

    url     where the user logs in; None until the tool has printed it
    device_code     the code that the user enters there, if the tool has one
    detail  why the login failed
    """

    model_config = ConfigDict(frozen=True)

    status: LoginStatus
    url: WebAddress | None = None
    device_code: Annotated[str, Field(max_length=64), AfterValidator(printable)] | None = None
    detail: Annotated[str, Field(max_length=4096), AfterValidator(printable)] = ""


class AgentProblem(BaseModel):
    """The reason with which an agent refuses a request."""

    detail: str = ""


class AgentCredentials(BaseModel):
    """The contents of the file in which a tool keeps its credentials."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    provider: str
    credentials: Annotated[dict[str, Any], Field(min_length=1, repr=False)]


def agent_health(status: int, body: bytes) -> AgentHealth:
    """Check and return the answer to `GET /health`. Raises ProtocolError."""
    if status not in STATUS_OF:
        raise ProtocolError(f"its agent answers {status} on /health")
    health = read_answer(AgentHealth, body)
    if health.status not in STATUS_OF[status]:
        raise ProtocolError(f"its agent answers {status} but with the status {health.status}")
    return health


def read_answer(kind: type[Reply], body: bytes) -> Reply:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = printable(".".join(str(part) for part in first["loc"])[:MAX_PLACE_CHARACTERS])
        raise ProtocolError(f"its agent's answer cannot be read: {place} {first['msg']}") from None


def refusal_reason(body: bytes) -> str:
    """Return the reason in an agent's problem details, made fit to be shown."""
    try:
        detail = AgentProblem.model_validate_json(body).detail
    except ValidationError:
        detail = ""
    return printable(detail[:MAX_DETAIL_CHARACTERS]) or "its agent gives no reason"


def agent_credentials(body: bytes, provider: str) -> bytes:
    """Return the credentials of an answer as compact JSON. ProtocolError quotes nothing of it."""
    try:
        told = AgentCredentials.model_validate_json(body)
        plain = compact_json(told.credentials)
    except (ValueError, RecursionError):  # pydantic's error is a ValueError
        raise ProtocolError("its agent's answer contains no valid credentials") from None
    if told.provider != provider:
        raise ProtocolError("its agent's answer contains credentials of another provider")
    if len(plain) > MAX_CREDENTIALS_BYTES:
        most = f"{MAX_CREDENTIALS_BYTES} bytes"
        raise ProtocolError(f"the credentials are too large: {len(plain)} bytes of {most}")
    return plain

"""HTTP client of the agents in VMs. A VM belongs to its user, so the size of answers is limited."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from polydev.controller.machines.bridge import bridge_problem
from polydev.controller.sealing import MAX_CREDENTIALS_BYTES, compact_json
from polydev.controller.states import LoginStatus
from polydev.errors import AgentError, AgentUnreachable, LoginRefused, ProtocolError, VmError
from polydev.host_layout import AGENT_PORT
from polydev.vm.boot_stages import printable
from polydev.vm.timeouts import end, within

MAX_BODY_BYTES = 256 * 1024
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
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable():
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


# The agent waits for the tool's status command, which takes long on an emulated CPU.
INJECT_SECONDS = 300.0
CREDENTIALS_SECONDS = 30.0
NEWER_IMAGE = "build and promote a newer image"


class AgentClient:
    """Sends requests to agents, by the addresses of their VMs. Close it after use."""

    def __init__(self, timeout_seconds: float, port: int = AGENT_PORT) -> None:
        self._timeout_seconds = timeout_seconds
        self._port = port
        self._under_way: set[asyncio.Task[tuple[int, bytes]]] = set()
        self._is_closed = False
        # A kept connection could lead to the VM that had the address before.
        self._http = httpx.AsyncClient(
            trust_env=False,
            verify=False,  # noqa: S501 - plain HTTP inside the host
            timeout=timeout_seconds,
            limits=httpx.Limits(max_keepalive_connections=0),
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        )

    async def health(self, vm_ip: str) -> AgentHealth:
        """Return the agent's health. Raises AgentUnreachable, and ProtocolError for a bad answer.

        Messages name no address, because users see them.
        """
        return agent_health(*await self._ask("GET", vm_ip, "/health"))

    async def health_or_error(self, vm_ip: str) -> AgentHealth | AgentError:
        """Return the agent's health, or the error instead of it."""
        try:
            return await self.health(vm_ip)
        except AgentError as error:
            return error

    async def login(self, vm_ip: str, provider: str, *, start: bool = False) -> AgentLogin:
        """Return the state of a tool's login; `start` starts a login unless one is under way.

        Raises AgentUnreachable and ProtocolError.
        """
        method, path = "POST" if start else "GET", f"/login/{provider}"
        status, body = await self._ask(method, vm_ip, path)
        if status in (404, 405):
            raise ProtocolError(f"its agent does not support {path}", NEWER_IMAGE)
        if status != 200:
            raise ProtocolError(f"its agent answers {status} on {path}")
        return _read(AgentLogin, body)

    async def type_code(self, vm_ip: str, provider: str, code: str) -> None:
        """Have the agent type a code into the terminal of a login that waits for one.

        Raises LoginRefused if none waits, AgentUnreachable and ProtocolError.
        """
        path = f"/login/{provider}/code"
        status, body = await self._ask_about_secrets("POST", vm_ip, path, {"code": code})
        if status in (404, 405):
            raise ProtocolError(f"its agent does not support {path}", NEWER_IMAGE)
        if status in (409, 422):
            raise LoginRefused(_refusal(body), "ask for oauth-url: it shows the state of the login")
        if status not in (200, 202):
            raise ProtocolError(f"its agent answers {status} on {path}")

    async def credentials(self, vm_ip: str, provider: str) -> bytes | None:
        """Return the tool's credentials as compact JSON; None if it has none, or if the agent's
        image is too old to hand them over.

        Raises AgentUnreachable, and ProtocolError for an answer that must not be stored.
        """
        path = f"/login/{provider}/credentials"
        status, body = await self._ask_about_secrets("GET", vm_ip, path)
        if status in (404, 405):
            return None
        if status != 200:
            raise ProtocolError(f"its agent returned no credentials: {_refusal(body)}")
        return _credentials(body, provider)

    async def inject(self, vm_ip: str, provider: str, plain: bytes) -> AgentLogin:
        """Give credentials, as JSON, to the tool, so that it is logged in.

        Raises LoginRefused with the tool's reason if it does not accept them, AgentUnreachable and
        ProtocolError.
        """
        path = f"/login/{provider}/credentials"
        body = b'{"credentials":' + plain + b"}"
        status, answer = await self._ask_about_secrets("PUT", vm_ip, path, body, INJECT_SECONDS)
        if status in (404, 405):
            raise ProtocolError("its agent does not accept credentials", NEWER_IMAGE)
        if status in (409, 422):
            raise LoginRefused(_refusal(answer))
        if status != 200:
            raise ProtocolError(f"its agent answers {status} on {path}")
        login = _read(AgentLogin, answer)
        if login.status != "done":
            raise LoginRefused(login.detail or f"the tool's login is still {login.status}")
        return login

    async def wipe(self, vm_ip: str, provider: str) -> None:
        """Remove the files of the tool's credentials. Raises AgentUnreachable, ProtocolError."""
        path = f"/login/{provider}/credentials"
        status, _body = await self._ask_about_secrets("DELETE", vm_ip, path)
        if status not in (200, 204, 404, 405):
            raise ProtocolError(f"its agent answers {status} to DELETE {path}")

    async def _ask_about_secrets(
        self,
        method: str,
        vm_ip: str,
        path: str,
        body: Mapping[str, str] | bytes | None = None,
        seconds: float = CREDENTIALS_SECONDS,
    ) -> tuple[int, bytes]:
        """Send a request as `_ask` does; a status of 5xx raises AgentUnreachable too."""
        status, answer = await self._ask(method, vm_ip, path, body, seconds)
        if status >= 500:
            raise AgentUnreachable(f"its agent answers {status}: {_refusal(answer)}")
        return status, answer

    async def _ask(
        self,
        method: str,
        vm_ip: str,
        path: str,
        body: Mapping[str, str] | bytes | None = None,
        seconds: float = 0,
    ) -> tuple[int, bytes]:
        """Send a request; `seconds` is the timeout where it must be longer than usual."""
        limit = max(seconds, self._timeout_seconds)
        try:
            asking = self._ask_until_closed(method, vm_ip, path, body, limit)
            return await within(limit, asking, "the answer")
        except VmError:
            raise AgentUnreachable(f"its agent did not answer within {limit:g} s") from None
        except httpx.HTTPError as error:
            words = bridge_problem(error) or _words(error)
            raise AgentUnreachable(f"its agent does not answer: {words}") from None

    async def _ask_until_closed(
        self,
        method: str,
        vm_ip: str,
        path: str,
        body: Mapping[str, str] | bytes | None,
        limit: float,
    ) -> tuple[int, bytes]:
        sent = compact_json(body) if isinstance(body, Mapping) else body
        task = asyncio.ensure_future(self._send(method, vm_ip, path, sent, limit))
        self._under_way.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if self._is_closed:
                raise AgentUnreachable("the controller ended before its agent answered") from None
            raise
        finally:
            self._under_way.discard(task)

    async def close(self) -> None:
        """End all requests under way with AgentUnreachable."""
        self._is_closed = True
        await end(*self._under_way)
        await self._http.aclose()

    async def _send(
        self, method: str, vm_ip: str, path: str, sent: bytes | None, limit: float
    ) -> tuple[int, bytes]:
        url = f"http://{vm_ip}:{self._port}{path}"
        timeout = httpx.Timeout(self._timeout_seconds, read=limit)
        kind = {} if sent is None else {"Content-Type": "application/json"}
        asking = self._http.stream(method, url, content=sent, headers=kind, timeout=timeout)
        async with asking as answer:
            body = bytearray()
            async for chunk in answer.aiter_raw():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise ProtocolError(f"its agent's answer is over {MAX_BODY_BYTES} bytes")
            return answer.status_code, bytes(body)


def agent_health(status: int, body: bytes) -> AgentHealth:
    """Check and return the answer to `GET /health`. Raises ProtocolError."""
    if status not in STATUS_OF:
        raise ProtocolError(f"its agent answers {status} on /health")
    health = _read(AgentHealth, body)
    if health.status not in STATUS_OF[status]:
        raise ProtocolError(f"its agent answers {status} but with the status {health.status}")
    return health


def _read(kind: type[Reply], body: bytes) -> Reply:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = printable(".".join(str(part) for part in first["loc"])[:MAX_PLACE_CHARACTERS])
        raise ProtocolError(f"its agent's answer cannot be read: {place} {first['msg']}") from None


def _refusal(body: bytes) -> str:
    """Return the reason in an agent's problem details, made fit to be shown."""
    try:
        detail = AgentProblem.model_validate_json(body).detail
    except ValidationError:
        detail = ""
    return printable(detail[:MAX_DETAIL_CHARACTERS]) or "its agent gives no reason"


def _credentials(body: bytes, provider: str) -> bytes:
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


def _words(error: httpx.HTTPError) -> str:
    words: dict[type[httpx.HTTPError], str] = {
        httpx.ConnectError: "connection refused, or the VM is not reachable",
        httpx.ConnectTimeout: "the VM is not reachable",
        httpx.ReadError: "the connection broke",
        httpx.RemoteProtocolError: "its answer is not HTTP",
    }
    return words.get(type(error), type(error).__name__)

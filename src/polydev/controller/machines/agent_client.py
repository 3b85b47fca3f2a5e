"""What a VM's agent says. The VM is its user's: nothing that it sends is trusted to be short."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from polydev.controller.machines.limits import within
from polydev.errors import AgentUnreachable, ProtocolError, VmError

AGENT_PORT = 8080
MAX_BODY_BYTES = 256 * 1024
STATUS_OF = {200: ("ready",), 503: ("starting", "failed")}


class ComponentHealth(BaseModel):
    model_config = ConfigDict(frozen=True)

    ok: bool
    detail: str


class AgentHealth(BaseModel):
    """The agent's `GET /health`, as far as the controller looks at it."""

    model_config = ConfigDict(frozen=True)

    status: Literal["ready", "starting", "failed"]
    stage: Literal["kernel", "init", "network", "services", "ready"]
    components: Mapping[str, ComponentHealth]
    failing: tuple[str, ...]
    failed_units: tuple[str, ...]
    vm_id: str | None
    session_id: str | None = None
    image_digest: str | None = None
    uptime_seconds: float | None = None


class AgentClient:
    """Asks agents by the addresses of their VMs. To be closed."""

    def __init__(self, timeout_seconds: float, port: int = AGENT_PORT) -> None:
        self._timeout_seconds = timeout_seconds
        self._port = port
        # A connection that is kept could be to the VM that had the address before.
        self._http = httpx.AsyncClient(
            trust_env=False,
            verify=False,  # noqa: S501 - plain HTTP inside the host
            timeout=timeout_seconds,
            limits=httpx.Limits(max_keepalive_connections=0),
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        )

    async def health(self, vm_ip: str) -> AgentHealth:
        """Raises AgentUnreachable, and ProtocolError for what no agent would say.

        Messages name no address: they get into what users see.
        """
        try:
            status, body = await within(self._timeout_seconds, self._get(vm_ip), "the answer")
        except VmError:
            raise AgentUnreachable(
                f"its agent did not answer within {self._timeout_seconds:g} s"
            ) from None
        except httpx.HTTPError as error:
            raise AgentUnreachable(f"its agent does not answer: {_words(error)}") from None
        return agent_health(status, body)

    async def close(self) -> None:
        await self._http.aclose()

    async def _get(self, vm_ip: str) -> tuple[int, bytes]:
        url = f"http://{vm_ip}:{self._port}/health"
        async with self._http.stream("GET", url) as answer:
            body = bytearray()
            async for chunk in answer.aiter_raw():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise ProtocolError(f"its agent's answer is over {MAX_BODY_BYTES} bytes")
            return answer.status_code, bytes(body)


def agent_health(status: int, body: bytes) -> AgentHealth:
    """The answer as a value. Raises ProtocolError."""
    if status not in STATUS_OF:
        raise ProtocolError(f"its agent answers {status} on /health")
    try:
        health = AgentHealth.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ProtocolError(f"its agent's answer is none: {place} {first['msg']}") from None
    if health.status not in STATUS_OF[status]:
        raise ProtocolError(f"its agent answers {status} and calls itself {health.status}")
    return health


def _words(error: httpx.HTTPError) -> str:
    words: dict[type[httpx.HTTPError], str] = {
        httpx.ConnectError: "nothing listens there, or nobody is there",
        httpx.ConnectTimeout: "nobody is there",
        httpx.ReadError: "the connection broke",
        httpx.RemoteProtocolError: "what it sends is no HTTP",
    }
    return words.get(type(error), type(error).__name__)

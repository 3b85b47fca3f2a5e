"""HTTP client of the agents in VMs. A VM belongs to its user, so the size of answers is limited."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import httpx

from polydev.controller.credential_encryption import compact_json
from polydev.controller.machines.agent_answers import (
    AgentHealth,
    AgentLogin,
    agent_credentials,
    agent_health,
    read_answer,
    refusal_reason,
)
from polydev.controller.machines.bridge_status import bridge_problem
from polydev.errors import AgentError, AgentUnreachable, LoginRefused, ProtocolError, VmError
from polydev.host_layout import AGENT_PORT
from polydev.vm.cancel_on_timeout import end, within

MAX_BODY_BYTES = 256 * 1024
# The agent waits for the tool's status command, which takes long on an emulated CPU.
INJECT_SECONDS = 300.0
CREDENTIALS_SECONDS = 30.0
# The agent answers once the login has started, for which it waits 60 s, and for 5 s for its URL: a
# program of an emulated guest on a busy host may stand still for 20 s.
START_SECONDS = 75.0
ASK_AGAIN = "ask again in a moment; if the VM stays silent, its session ends and says why"
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
        status, body = await self._ask(method, vm_ip, path, seconds=START_SECONDS if start else 0)
        if status in (404, 405):
            raise ProtocolError(f"its agent does not support {path}", NEWER_IMAGE)
        if status != 200:
            raise ProtocolError(f"its agent answers {status} on {path}")
        return read_answer(AgentLogin, body)

    async def type_code(self, vm_ip: str, provider: str, code: str) -> None:
        """Have the agent type a code into the terminal of a login that waits for one.

        Raises LoginRefused if none waits, AgentUnreachable and ProtocolError.
        """
        path = f"/login/{provider}/code"
        status, body = await self._ask_about_secrets("POST", vm_ip, path, {"code": code})
        if status in (404, 405):
            raise ProtocolError(f"its agent does not support {path}", NEWER_IMAGE)
        if status in (409, 422):
            raise LoginRefused(
                refusal_reason(body), "ask for oauth-url: it shows the state of the login"
            )
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
            raise ProtocolError(f"its agent returned no credentials: {refusal_reason(body)}")
        return agent_credentials(body, provider)

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
            raise LoginRefused(refusal_reason(answer))
        if status != 200:
            raise ProtocolError(f"its agent answers {status} on {path}")
        login = read_answer(AgentLogin, answer)
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
            raise AgentUnreachable(f"its agent answers {status}: {refusal_reason(answer)}")
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
            words = f"its agent did not answer within {limit:g} s"
            raise AgentUnreachable(words, ASK_AGAIN) from None
        except httpx.HTTPError as error:
            words = bridge_problem(error) or _words(error)
            raise AgentUnreachable(f"its agent does not answer: {words}", ASK_AGAIN) from None

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


def _words(error: httpx.HTTPError) -> str:
    words: dict[type[httpx.HTTPError], str] = {
        httpx.ConnectError: "connection refused, or the VM is not reachable",
        httpx.ConnectTimeout: "the VM is not reachable",
        httpx.ReadError: "the connection broke",
        httpx.RemoteProtocolError: "its answer is not HTTP",
    }
    return words.get(type(error), type(error).__name__)

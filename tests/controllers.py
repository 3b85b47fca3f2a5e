"""A real controller process on a host of fake VMs, with a user and an operator."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from polydev.controller.app import create_app
from polydev.controller.app_services import Services
from polydev.controller.server import Server
from polydev.controller.settings import ControllerSettings
from tests.api import JWT_SECRET, token_of
from tests.vms import FakeHost, fake_hosts

DEADLINE_SECONDS = 300
POLL_SECONDS = 0.05
# Well below the server's `keep_alive_seconds`: else, after this process has stood still, the client
# would take a connection at the moment at which the server closes it.
REUSE = httpx.Limits(keepalive_expiry=1)
Scenario = Callable[[FakeHost], Awaitable[None]]


def run(tmp_path: Path, scenario: Scenario) -> None:
    async def on_host() -> None:
        async with fake_hosts(tmp_path) as host:
            await asyncio.wait_for(scenario(host), DEADLINE_SECONDS)

    asyncio.run(on_host())


@dataclass(frozen=True)
class Controller:
    """A running controller, and a user and an operator who call it."""

    server: Server
    http: httpx.AsyncClient
    user_id: str
    user: dict[str, str]
    operator: dict[str, str]

    def end(self) -> None:
        self.server.should_exit = True

    async def start(self, **words: Any) -> dict[str, Any]:
        body = {"userId": self.user_id, "provider": "claude", **words}
        answer = await self.http.post("/api/auth/start", json=body, headers=self.user)
        assert answer.status_code == 201, answer.text
        started: dict[str, Any] = answer.json()
        return started

    async def get(self, path: str, status: int = 200) -> dict[str, Any]:
        answer = await self.http.get(path, headers=self.operator)
        assert answer.status_code == status, answer.text
        told: dict[str, Any] = answer.json()
        return told

    @asynccontextmanager
    async def events(self, session: dict[str, Any], after: int = 0) -> AsyncIterator[Events]:
        """Open the event stream as a browser does: with the token in the query."""
        token = self.user["Authorization"].removeprefix("Bearer ")
        async with self.http.stream(
            "GET",
            session["links"]["events"],
            params={"access_token": token},
            headers={"Last-Event-ID": str(after)},
        ) as answer:
            assert answer.status_code == 200
            yield Events(answer.aiter_lines())

    async def released(self, vm_id: str) -> dict[str, Any]:
        """Wait until nothing is left of the VM, and return it."""
        while True:
            vm = await self.get(f"/api/vm/{vm_id}")
            if vm["releasedAt"]:
                return vm
            await asyncio.sleep(POLL_SECONDS)


@dataclass
class Events:
    lines: AsyncIterator[str]
    last: int = 0

    async def next(self) -> dict[str, Any] | None:
        """Return the data of the next event; None at the end of the stream."""
        async for line in self.lines:
            name, _, value = line.partition(": ")
            if name == "id":
                self.last = int(value)
            if name == "data":
                data: dict[str, Any] = json.loads(value)
                return data
        return None

    async def until(self, **wanted: Any) -> dict[str, Any]:
        """Return the first event with these values."""
        while (data := await self.next()) is not None:
            if wanted.items() <= data.items():
                return data
        raise AssertionError(f"the events end without {wanted}")


@asynccontextmanager
async def controller(
    host: FakeHost, unchecked: Mapping[str, object] | None = None, **changes: Any
) -> AsyncIterator[Controller]:
    """A controller of the host, until it is told to end and has ended.

    `unchecked` has settings that no operator may have.
    """
    values = {**host.settings_values, "jwt_secret": JWT_SECRET, **changes}
    settings = ControllerSettings(**values).model_copy(update=unchecked)
    app = create_app(settings, host.hypervisor)
    services: Services = app.state.services
    user, operator = [await services.users.add(role) for role in ("user", "operator")]
    token = (await services.tokens.create(operator.id, "tests"))[1]
    server = Server(settings, app, only_if_healthy=True)
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        serving = asyncio.create_task(server.serve([listening]))
        try:
            async with httpx.AsyncClient(
                base_url=url, trust_env=False, timeout=60, limits=REUSE
            ) as http:
                yield Controller(
                    server,
                    http,
                    user.id,
                    {"Authorization": f"Bearer {token_of(user.id)}"},
                    {"Authorization": f"Bearer {token}"},
                )
        finally:
            server.should_exit = True
            await serving

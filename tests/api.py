"""An API client over ASGI, without a server, for callers of every role."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jwt
from fastapi import FastAPI
from pydantic import SecretStr

from polydev.controller.app import create_app
from polydev.controller.app_services import Services
from polydev.controller.entities import Role
from polydev.controller.machines.hypervisor import (
    Hypervisor,
    Launch,
    Origin,
    SlotState,
    TemplatesReport,
)
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.vm_slots import sync_slots
from polydev.controller.web.assets import OWN
from polydev.errors import VmError
from polydev.vm.identity import Identity, Receipt
from polydev.yaml_files import load_yaml
from tests.images import write_record

JWT_SECRET = "the secret of the tests, long enough"
SQLITE = "sqlite+aiosqlite:///"
IMAGE_DIGEST = "4f1d" * 16
USERS: Mapping[str, Role] = {
    "user": "user",
    "other user": "user",
    "operator": "operator",
    "admin": "admin",
}
STRANGERS = ("nobody", "a bad token", "an expired JWT", "a revoked token")
CALLERS = (*STRANGERS, *USERS)


class StillHypervisor:
    """Hypervisor that runs nothing; it keeps a console for each VM that is asked about."""

    def __init__(self, root: Path) -> None:
        self.root = root
        origin = Origin(IMAGE_DIGEST, because="its image has no template")
        self.report = TemplatesReport(IMAGE_DIGEST, "7e" * 32, origin, ())

    async def start(self, launch: Launch) -> None: ...

    async def templates(self) -> TemplatesReport:
        return self.report

    async def resume(self, slot: int, vm_id: str) -> None: ...

    async def pause(self, slot: int, vm_id: str) -> None: ...

    async def set_clock(self, slot: int, vm_id: str) -> None: ...

    async def identify(self, slot: int, vm_id: str, identity: Identity) -> Receipt:
        raise VmError("nobody is there")

    async def stop(self, slot: int) -> None: ...

    async def poll(self, slot: int) -> SlotState:
        return SlotState(slot, "inactive", None)

    async def slots(self) -> dict[int, SlotState]:
        return {}

    async def discard(self, slot: int, vm_id: str, *, keep_logs: bool) -> None: ...

    async def folders(self) -> set[tuple[int, str]]:
        return set()

    async def close(self) -> None:
        """Do nothing: no connection is open."""

    def console(self, slot: int, vm_id: str) -> Path:
        return self.root / str(slot) / vm_id / "serial.log"

    def qemu_log(self, slot: int, vm_id: str) -> Path:
        return self.root / str(slot) / vm_id / "qemu.log"

    def say(self, slot: int, vm_id: str, text: bytes) -> None:
        file = self.console(slot, vm_id)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as opened:
            opened.write(text)


@dataclass(frozen=True)
class Served:
    """A served application; `users` are ids, `tokens` those of CALLERS, None for no token."""

    app: FastAPI
    client: httpx.AsyncClient
    users: Mapping[str, str]
    tokens: Mapping[str, str | None]

    @property
    def services(self) -> Services:
        services: Services = self.app.state.services
        return services

    def headers(self, caller: str) -> dict[str, str]:
        token = self.tokens[caller]
        return {"Authorization": f"Bearer {token}"} if token else {}

    async def ask(
        self,
        method: str,
        path: str,
        caller: str = "user",
        headers: Mapping[str, str] | None = None,
        **words: Any,
    ) -> httpx.Response:
        sent = {**self.headers(caller), **(headers or {})}
        return await self.client.request(method, path, headers=sent, **words)

    async def start(self, caller: str = "user", **words: Any) -> dict[str, Any]:
        """Start a session of the caller."""
        body = {"userId": self.users[caller], "provider": "claude"}
        answer = await self.ask("POST", "/api/auth/start", caller, json=body, **words)
        assert answer.status_code == 201, answer.text
        started: dict[str, Any] = answer.json()
        return started


@asynccontextmanager
async def served(
    settings: ControllerSettings, hypervisor: Hypervisor, packed_assets: Path | None = None
) -> AsyncIterator[Served]:
    """The application on a migrated database, with a user of each role and no background work."""
    app = create_app(settings, hypervisor, packed_assets)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://controller.test"
        ) as client,
    ):
        services: Services = app.state.services
        users = {name: (await services.users.add(role, name)).id for name, role in USERS.items()}
        yield Served(app, client, users, await _tokens(services, users))


async def _tokens(services: Services, users: Mapping[str, str]) -> dict[str, str | None]:
    """Return JWTs for users and tokens for operators."""
    revoked, plain = await services.tokens.create(users["admin"], "revoked")
    await services.tokens.revoke(revoked.id)
    return {
        "nobody": None,
        "a bad token": "pdt_" + "x" * 43,
        "an expired JWT": token_of(users["admin"], -60),
        "a revoked token": plain,
        "user": token_of(users["user"]),
        "other user": token_of(users["other user"]),
        "operator": (await services.tokens.create(users["operator"], "tests"))[1],
        "admin": (await services.tokens.create(users["admin"], "tests"))[1],
    }


def token_of(user_id: str, seconds: int = 600) -> str:
    claims = {"sub": user_id, "exp": int(time.time()) + seconds}
    return jwt.encode(claims, JWT_SECRET, algorithm="HS256")


def image_store(root: Path) -> Path:
    """A store with a golden image that cannot boot."""
    image = root / "images" / IMAGE_DIGEST
    image.mkdir(parents=True)
    (image / "rootfs.ext4").touch()
    write_record(image)
    (root / "golden-rootfs.ext4").symlink_to(image / "rootfs.ext4")
    return root


def routes_of(app: FastAPI) -> set[tuple[str, str]]:
    """Return every route as method and path; WS stands for a WebSocket."""
    return {
        (method, route.path)
        for route in _flat(app.routes)
        for method in getattr(route, "methods", None) or {"WS"}
    }


def _flat(routes: Iterable[Any]) -> Iterator[Any]:
    for route in routes:
        if hasattr(route, "effective_route_contexts"):
            yield from (each.original_route for each in route.effective_route_contexts())
        else:
            yield route


Scenario = Callable[[Served], Awaitable[None]]


@dataclass(frozen=True)
class ApiHost:
    """The configuration of the application, with a migrated database."""

    settings: ControllerSettings
    hypervisor: StillHypervisor
    packed_assets: Path

    @property
    def database(self) -> Path:
        return Path(self.settings.database_url.removeprefix(SQLITE))

    def run(self, scenario: Scenario, **changes: Any) -> None:
        """Run a scenario with its own application; `changes` are settings."""

        async def talk() -> None:
            settings = self.settings.model_copy(update=changes)
            async with served(settings, self.hypervisor, self.packed_assets) as asked:
                database = asked.services.database
                await sync_slots(database, settings.slots, settings.vm_network)
                await scenario(asked)

        asyncio.run(talk())


def api_host(migrated: Path, folder: Path, **words: Any) -> ApiHost:
    """Return a host with a copy of a migrated database; `words` are further settings."""
    database = folder / "controller.sqlite3"
    shutil.copy(migrated, database)
    settings = ControllerSettings(
        database_url=f"{SQLITE}{database}",
        image_store=image_store(folder / "store"),
        jwt_secret=SecretStr(JWT_SECRET),
        **words,
    )
    return ApiHost(settings, StillHypervisor(folder / "microvm"), empty_assets(folder / "packed"))


def empty_assets(folder: Path) -> Path:
    """Names of the files of others that pages load; tests without a browser do not read them."""
    for place in load_yaml(OWN.parent / "vendor.yaml"):
        file = folder / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"/* {place} */")
    return folder


def problem(answer: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """Return the problem details of an answer that must have this status."""
    told: dict[str, Any] = answer.json()
    assert (answer.status_code, told["status"]) == (status, status), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert told["error"] == told["detail"]  # the name that older clients read
    assert told["type"] == (f"urn:polydev:error:{code}" if code else "about:blank")
    return told

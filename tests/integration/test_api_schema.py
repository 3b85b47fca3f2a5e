"""The API against its own schema: generated requests to a real server."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, settings
from pydantic import SecretStr
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from polydev.client.credentials_key import new_key
from polydev.controller.app import create_app
from polydev.controller.app_services import Services
from polydev.controller.migrate import migrate
from polydev.controller.settings import ControllerSettings, RateLimits, SessionLimits
from polydev.controller.store.vm_slots import sync_slots
from tests.api import Served, StillHypervisor, image_store, served

CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    ignored_auth,
]
# These stream without end.
FOLLOWING = ("/api/auth/session/{session_id}/events", "/api/vm/{vm_id}/console")


@dataclass(frozen=True)
class Host:
    """Ids of ended and of live entities, and a token that may read them all."""

    url: str
    token: str
    over: dict[str, str]
    live: dict[str, str]
    user_id: str


@pytest.fixture(scope="module")
def api_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    root = tmp_path_factory.mktemp("api")
    made: list[Host] = []
    ready, ending = threading.Event(), threading.Event()

    async def serve() -> None:
        hypervisor = StillHypervisor(root / "microvm")
        async with served(await _settings(root), hypervisor) as asked:
            with socket.create_server(("127.0.0.1", 0)) as listening:
                server = uvicorn.Server(
                    uvicorn.Config(asked.app, lifespan="off", log_config=None, ws="none")
                )
                serving = asyncio.create_task(server.serve([listening]))
                made.append(await _seeded(asked, hypervisor, listening.getsockname()[1]))
                ready.set()
                await asyncio.to_thread(ending.wait)
                server.should_exit = True
                await serving

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(60)
        yield made[0]
    finally:
        ending.set()
        thread.join()


async def _settings(root: Path) -> ControllerSettings:
    made = ControllerSettings(
        database_url=f"sqlite+aiosqlite:///{root / 'controller.sqlite3'}",
        image_store=image_store(root / "store"),
        slots=tuple(range(2, 255)),
        session=SessionLimits(per_user=4),
        rate=RateLimits(
            requests_per_second=1e6, burst=10**6, starts_burst=10**6, credentials_burst=10**6
        ),
        credentials_key=SecretStr(new_key()),
    )
    await migrate(made.database_url)
    return made


async def _seeded(asked: Served, hypervisor: StillHypervisor, port: int) -> Host:
    services: Services = asked.services
    await sync_slots(services.database, services.settings.slots, services.settings.vm_network)
    over, live = await asked.start("admin"), await asked.start("admin")
    await services.vms.launched(over["vmId"])
    await services.vms.fail(over["vmId"], "it went away", ["a.service"], "last words")
    await services.vms.released(over["vmId"])
    await services.credentials.store(asked.users["admin"], "claude", b'{"token":"x"}')
    hypervisor.say(2, over["vmId"], b"\x1b[1mLinux\xff version 6\r\n" * 300)
    token = asked.tokens["admin"]
    assert token is not None
    return Host(
        url=f"http://127.0.0.1:{port}",
        token=token,
        over={"session_id": over["id"], "vm_id": over["vmId"]},
        live={"session_id": live["id"], "vm_id": live["vmId"]},
        user_id=asked.users["user"],
    )


# The schema does not depend on the settings, so nothing is opened for it.
api = schemathesis.openapi.from_dict(
    create_app(ControllerSettings(), StillHypervisor(Path())).openapi()
)


@api.parametrize()
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_api_answers_match_the_openapi_schema(case: Any, api_host: Host) -> None:
    _make_some_ids_real(case, api_host)
    headers = {"Authorization": f"Bearer {api_host.token}"}
    case.call_and_validate(base_url=api_host.url, headers=headers, checks=CHECKS, timeout=60)


def _make_some_ids_real(case: Any, host: Host) -> None:
    """Replace every second generated id by an existing one, since made-up ids are unknown."""
    known = host.over if case.path in FOLLOWING else host.live
    for name, value in (case.path_parameters or {}).items():
        if name in known and str(value)[:1] in "02468ace":
            case.path_parameters[name] = known[name]
    if isinstance(case.body, dict) and str(case.body.get("userId"))[:1] in "02468ace":
        case.body["userId"] = host.user_id

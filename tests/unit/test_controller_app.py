"""The API over ASGI: health, errors, request ids, limits, metrics."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import jsonschema
import pytest
import structlog
from fastapi import FastAPI, Request
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.exc import OperationalError

from polydev.controller.app import create_app
from polydev.controller.app_services import Services
from polydev.controller.entities import Caller
from polydev.controller.health import database_state, image_store_state
from polydev.controller.in_process_request import ask
from polydev.controller.migrate import migrate
from polydev.controller.migrations import HEAD
from polydev.controller.settings import ControllerSettings
from polydev.errors import ConfigError, VmError
from tests.api import StillHypervisor
from tests.stores import copy_migrated_database

HEALTH = "/api/auth/health"
USER_ID = "0f9f6a0e-52a5-4f0f-8a9e-6d1d2b6f3c10"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "controller.sqlite3"


@pytest.fixture
def settings(database: Path, tmp_path: Path) -> ControllerSettings:
    return ControllerSettings(
        database_url=f"sqlite+aiosqlite:///{database}",
        image_store=tmp_path / "store",
        release_file=tmp_path / "release.json",
        max_body_bytes=1000,
    )


@pytest.fixture
def app(settings: ControllerSettings, database: Path, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """The app with a migrated database, and routes that fail in each way."""
    copy_migrated_database(database)
    made = create_app(settings)
    as_operator(made, monkeypatch)

    @made.get("/fails/{how}")
    async def fails(how: str, number: int = 0) -> None:
        raise {
            "config": ConfigError("no such slot", "declare it"),
            "vm": VmError("the VM is gone"),
            "bug": RuntimeError("secret inside"),
            "database": OperationalError("SELECT secret", {}, Exception("gone")),
        }[how]

    @made.post("/length")
    async def length(request: Request) -> int:
        return len(await request.body())

    return made


def as_operator(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every caller an operator; test_controller_api.py tests access."""

    async def caller(*_shown: str | None) -> Caller:
        return Caller(USER_ID, "operator", "token")

    services: Services = app.state.services
    monkeypatch.setattr(services.authenticator, "caller", caller)


def call(
    app: FastAPI,
    path: str,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    content: bytes | AsyncIterator[bytes] = b"",
) -> httpx.Response:
    before = set(threading.enumerate())

    async def talk() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            answer = await client.request(method, path, headers=headers, content=content)
        # A failed connection ends in its thread, which notifies this loop.
        for thread in set(threading.enumerate()) - before:
            if "_connection_worker_thread" in thread.name:
                await asyncio.to_thread(thread.join)
        return answer

    return asyncio.run(talk())


def test_health_of_a_newly_deployed_host(app: FastAPI, settings: ControllerSettings) -> None:
    assert settings.release_file is not None
    settings.release_file.write_text('{"id": "20261121_101500-07af4b7"}')
    before = time.monotonic()
    answer = call(create_app(settings), HEALTH)
    assert answer.status_code == 200
    told = answer.json()
    assert told["status"] == "healthy"
    assert told["release"] == "20261121_101500-07af4b7"
    assert 0 < told["uptimeSeconds"] < time.monotonic() - before
    assert told["components"]["database"] == {
        "status": "healthy",
        "detail": f"at revision {HEAD}",
        "revision": HEAD,
        "expectedRevision": HEAD,
    }
    assert told["components"]["imageStore"]["status"] == "degraded"


def test_health_without_schema_is_503(settings: ControllerSettings) -> None:
    answer = call(create_app(settings), HEALTH)
    assert answer.status_code == 503
    assert answer.json()["status"] == "unhealthy"
    assert answer.json()["components"]["database"]["detail"].startswith("never migrated")


def test_health_without_database_is_503(settings: ControllerSettings, tmp_path: Path) -> None:
    lost = settings.model_copy(
        update={"database_url": f"sqlite+aiosqlite:///{tmp_path}/not/there.sqlite3"}
    )
    answer = call(create_app(lost), HEALTH)
    assert answer.status_code == 503
    detail = answer.json()["components"]["database"]["detail"]
    assert detail == "cannot be reached: unable to open database file"


def test_ask_returns_the_same_answer_as_a_client(app: FastAPI) -> None:
    status, body = asyncio.run(ask(app, HEALTH))
    assert status == 200
    assert b'"status":"healthy"' in body


def test_new_schema_is_unhealthy_only_for_a_new_process(
    app: FastAPI, settings: ControllerSettings, database: Path
) -> None:
    """The process that serves while the next release is deployed stays healthy."""

    async def scenario() -> list[int]:
        statuses = [(await ask(app, HEALTH))[0]]
        with sqlite3.connect(database) as connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.close()
        statuses.append((await ask(app, HEALTH))[0])
        statuses.append((await ask(create_app(settings), HEALTH))[0])
        return statuses

    assert asyncio.run(scenario()) == [200, 200, 503]


def test_database_state_by_schema_revision() -> None:
    assert database_state(HEAD, was_current=False).status == "healthy"
    assert database_state("0", was_current=True).status == "degraded"
    assert database_state("0", was_current=False).status == "unhealthy"
    assert database_state(None, was_current=True).status == "unhealthy"


def test_image_store_state_by_golden_link(tmp_path: Path) -> None:
    link = tmp_path / "golden-rootfs.ext4"
    assert image_store_state(tmp_path).status == "degraded"
    link.symlink_to("promotions/1/rootfs.ext4")
    assert "points to nothing" in image_store_state(tmp_path).detail
    (tmp_path / "images/4f1d").mkdir(parents=True)
    (tmp_path / "images/4f1d/rootfs.ext4").touch()
    (tmp_path / "promotions").mkdir()
    (tmp_path / "promotions/1").symlink_to("../images/4f1d")
    found = image_store_state(tmp_path)
    assert (found.status, found.golden) == ("healthy", "4f1d")


@pytest.mark.parametrize(
    ("method", "path", "status", "kind", "detail"),
    [
        ("GET", "/nothing", 404, "about:blank", "there is nothing at this address"),
        ("POST", HEALTH, 405, "about:blank", "this method is not allowed at this address"),
        ("GET", "/fails/config", 500, "urn:polydev:error:config", "no such slot"),
        ("GET", "/fails/vm", 502, "urn:polydev:error:vm", "the VM is gone"),
        ("GET", "/fails/database", 503, "about:blank", "the database does not answer"),
        ("GET", "/fails/vm?number=x", 422, "about:blank", "the request is not valid"),
        ("GET", "/fails/bug", 500, "about:blank", "unexpected error: the controller's log has"),
    ],
)
def test_every_failure_is_problem_details(
    app: FastAPI, method: str, path: str, status: int, kind: str, detail: str
) -> None:
    answer = call(app, path, method, headers={"X-Request-Id": "of.the-caller_1"})
    told = answer.json()
    assert answer.status_code == told["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert told["type"] == kind
    assert told["title"]
    assert told["detail"].startswith(detail)
    assert told["instance"] == path.partition("?")[0]
    assert told["requestId"] == answer.headers["x-request-id"] == "of.the-caller_1"
    assert "secret" not in answer.text
    described = app.openapi()
    schema = {"$ref": "#/components/schemas/Problem", "components": described["components"]}
    jsonschema.validate(told, schema)


def test_validation_names_the_input_but_not_its_value(app: FastAPI) -> None:
    (error,) = call(app, "/fails/vm?number=my-token").json()["errors"]
    assert error["pointer"] == "query/number"
    assert "my-token" not in str(error)


def test_problem_contains_the_hint_of_the_error(app: FastAPI) -> None:
    assert call(app, "/fails/config").json()["hint"] == "declare it"


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, 'quote"'])
def test_malformed_request_ids_are_replaced(app: FastAPI, given: str) -> None:
    answer = call(app, HEALTH, headers={"X-Request-Id": given})
    assert len(answer.headers["x-request-id"]) == 32


async def chunks() -> AsyncIterator[bytes]:
    for _ in range(11):
        yield b"x" * 100


@pytest.mark.parametrize("content", [lambda: b"x" * 1001, chunks], ids=["announced", "chunked"])
def test_bodies_are_limited(
    app: FastAPI, content: Callable[[], bytes | AsyncIterator[bytes]]
) -> None:
    answer = call(app, "/length", "POST", content=content())
    assert answer.status_code == 413
    assert answer.json()["detail"] == "the body is too large: at most 1000 bytes are allowed"


def test_bodies_up_to_the_limit_pass(app: FastAPI) -> None:
    assert call(app, "/length", "POST", content=b"x" * 1000).json() == 1000


@pytest.mark.parametrize(
    ("path", "status"), [(HEALTH, 200), ("/fails/config", 500), ("/nothing", 404), ("/length", 405)]
)
def test_head_is_answered_as_get_without_its_body(app: FastAPI, path: str, status: int) -> None:
    asked = {"X-Request-Id": "mine"}
    got, head = call(app, path, headers=asked), call(app, path, "HEAD", headers=asked)
    assert (got.status_code, head.status_code, head.content) == (status, status, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    assert int(head.headers["content-length"]) > 0
    counted = [line for line in call(app, "/metrics").text.splitlines() if 'method="HEAD"' in line]
    assert any(f'status="{status}"' in line for line in counted)


def test_metrics_have_routes_but_no_paths_as_labels(app: FastAPI) -> None:
    for path in (HEALTH, "/fails/vm", "/fails/config", "/nothing/1", "/nothing/2"):
        call(app, path)
    call(app, HEALTH, "BREW")
    text = call(app, "/metrics").text
    samples = {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    total = "polydev_http_requests_total"
    assert samples[(total, "GET", HEALTH, "200")] == 1
    assert samples[(total, "GET", "/fails/{how}", "502")] == 1
    assert samples[(total, "GET", "/fails/{how}", "500")] == 1
    assert samples[(total, "GET", "(none)", "404")] == 2
    assert samples[(total, "other", HEALTH, "405")] == 1
    assert samples[("polydev_http_request_duration_seconds_count", "GET", HEALTH)] == 1
    assert samples[("polydev_http_requests_in_flight",)] == 1
    assert samples[("polydev_controller_database_up",)] == 1
    assert samples[("polydev_controller_build_info", "", "0.1.0")] == 1
    assert ("polydev_controller_uptime_seconds",) in samples


def test_database_up_is_0_without_its_schema(
    settings: ControllerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(settings)
    as_operator(app, monkeypatch)
    assert "polydev_controller_database_up 0.0" in call(app, "/metrics").text


def test_metric_names_are_unique(settings: ControllerSettings, tmp_path: Path) -> None:
    app = create_app(
        settings.model_copy(update={"slots": (2,)}), StillHypervisor(tmp_path / "microvm")
    )
    asyncio.run(migrate(settings.database_url))
    services: Services = app.state.services

    async def figures() -> bytes:
        async with app.router.lifespan_context(app):
            await services.sample_loop.sample_once()
            return services.metrics.text()

    families = text_string_to_metric_families(asyncio.run(figures()).decode())
    names = Counter(family.name for family in families)
    assert [name for name, count in names.items() if count > 1] == []


def test_each_request_is_logged_once_without_its_query(app: FastAPI) -> None:
    with structlog.testing.capture_logs(
        processors=[structlog.contextvars.merge_contextvars]
    ) as lines:
        call(app, "/fails/vm?token=abc", headers={"X-Request-Id": "mine"})
        call(app, HEALTH)
    one, health = (line for line in lines if "path" in line)
    assert one["path"] == "/fails/vm"
    assert one["route"] == "/fails/{how}"
    assert (one["status"], one["requestId"], one["log_level"]) == (502, "mine", "info")
    assert "abc" not in str(one)
    assert health["log_level"] == "debug"


def test_documented_examples_match_the_schema(app: FastAPI) -> None:
    described = app.openapi()
    answers = described["paths"][HEALTH]["get"]["responses"]
    components = {"components": described["components"]}
    for status in ("200", "503"):
        content = answers[status]["content"]["application/json"]
        jsonschema.validate(content["example"], {**content["schema"], **components})

"""Requests from pages of other origins: none by default, else those that are configured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from polydev.controller.cors import checked_origin
from polydev.controller.settings import ControllerSettings
from tests.api import ApiHost, Served, api_host, problem

ORIGIN = "https://app.example.com"
OTHERS = ("https://evil.example.com", "http://app.example.com", f"{ORIGIN}:8443", "null", "")
START = "/api/auth/start"


@pytest.fixture
def host(migrated: Path, tmp_path: Path) -> ApiHost:
    return api_host(migrated, tmp_path, slots=(2, 3))


def preflight(origin: str, method: str = "POST", **more: str) -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type,idempotency-key",
        **more,
    }


def allowed(headers: Mapping[str, str]) -> list[str]:
    return [name for name in headers if name.lower().startswith("access-control-")]


def test_no_origin_is_allowed_by_default(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        for sent in (preflight(ORIGIN), {"Origin": ORIGIN}):
            answer = await asked.ask("OPTIONS", START, "nobody", headers=sent)
            problem(answer, 401, "not-authenticated")
            assert allowed(answer.headers) == []
        answer = await asked.ask("GET", "/api/vm", headers={"Origin": ORIGIN})
        assert (answer.status_code, allowed(answer.headers)) == (200, [])

    host.run(scenario)


@pytest.mark.parametrize("path", [START, "/api/auth/session/x", "/api/auth/health", "/nothing"])
def test_a_preflight_of_a_configured_origin_needs_no_token(host: ApiHost, path: str) -> None:
    async def scenario(asked: Served) -> None:
        for method in ("GET", "POST", "DELETE"):
            answer = await asked.ask("OPTIONS", path, "nobody", headers=preflight(ORIGIN, method))
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == ORIGIN
            assert method in answer.headers["access-control-allow-methods"].split(", ")
            assert "idempotency-key" in answer.headers["access-control-allow-headers"]
            assert "access-control-allow-credentials" not in answer.headers
            assert "Origin" in answer.headers["vary"]
            assert answer.headers["x-request-id"]
        private = preflight(ORIGIN, **{"Access-Control-Request-Private-Network": "true"})
        answer = await asked.ask("OPTIONS", path, "nobody", headers=private)
        assert answer.headers["access-control-allow-private-network"] == "true"

    host.run(scenario, cors_origins=(ORIGIN,))


@pytest.mark.parametrize("origin", OTHERS)
def test_other_origins_get_no_cors_headers(host: ApiHost, origin: str) -> None:
    async def scenario(asked: Served) -> None:
        answer = await asked.ask("OPTIONS", START, "nobody", headers=preflight(origin))
        problem(answer, 401, "not-authenticated")
        assert allowed(answer.headers) == []
        answer = await asked.ask("GET", "/api/vm", headers={"Origin": origin})
        assert (answer.status_code, allowed(answer.headers)) == (200, [])
        assert answer.headers["vary"] == "Origin"

    host.run(scenario, cors_origins=(ORIGIN,))


def test_preflight_of_an_unknown_method_needs_a_token(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        answer = await asked.ask("OPTIONS", START, "nobody", headers=preflight(ORIGIN, "BREW"))
        problem(answer, 401, "not-authenticated")

    host.run(scenario, cors_origins=(ORIGIN,))


def test_every_answer_has_cors_headers(host: ApiHost, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(asked: Served) -> None:
        async def broken(*_words: Any) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(asked.services.vms, "list", broken)
        origin = {"Origin": ORIGIN}
        body = {"userId": asked.users["user"], "provider": "claude"}
        answers = [
            await asked.ask("POST", START, headers=origin, json=body),
            await asked.ask("POST", START, headers=origin, json={}),
            await asked.ask("POST", START, "nobody", headers=origin),
            await asked.ask("OPTIONS", START, "nobody", headers=origin),  # no preflight
            await asked.ask("GET", "/nothing", headers=origin),
            await asked.ask("GET", "/api/vm", headers=origin),
        ]
        assert [each.status_code for each in answers] == [201, 422, 401, 401, 404, 500]
        for answer in answers:
            assert answer.headers["access-control-allow-origin"] == ORIGIN
            assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
            assert "Origin" in answer.headers["vary"]

    host.run(scenario, cors_origins=(ORIGIN,))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("https://app.example.com", "https://app.example.com"),
        ("HTTPS://App.Example.com/", "https://app.example.com"),
        ("https://app.example.com:443", "https://app.example.com"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:80", "http://[::1]"),
    ],
)
def test_origins_are_normalized(given: str, meant: str) -> None:
    assert checked_origin(given) == meant


@pytest.mark.parametrize(
    "given",
    [
        "*",
        "null",
        "app.example.com",
        "https://",
        "https://*.example.com",
        "https://app.example.com/page",
        "https://user@app.example.com",
        "https://app.example.com?x",
        "https://app.example.com:x",
        "https://app.example.com:99999",
        "ftp://app.example.com",
        "https://app.example.com, https://b.example.com",
        "",
    ],
)
def test_malformed_origins_are_refused(given: str) -> None:
    with pytest.raises(ValidationError, match="is not an origin"):
        ControllerSettings(cors_origins=(given,))

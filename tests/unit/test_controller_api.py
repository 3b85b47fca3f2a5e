"""The API's calls: their answers, and who may call them."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from pydantic import SecretStr

from polydev.client.credentials_key import new_key
from polydev.controller.api.documented_errors import error_responses
from polydev.controller.api.events import stream
from polydev.controller.api.providers import EXAMPLE
from polydev.controller.api.session_answers import SESSION_EXAMPLE, SessionAnswer
from polydev.controller.api.vm_answers import (
    SESSION_VM_EXAMPLE,
    VM_EXAMPLE,
    SessionVmAnswer,
    VmAnswer,
)
from polydev.controller.entities import Caller, now
from polydev.controller.problem_details import Problem
from polydev.controller.settings import RateLimits, SessionLimits
from polydev.image_layout import RECORD
from tests.api import (
    CALLERS,
    IMAGE_DIGEST,
    STRANGERS,
    USERS,
    ApiHost,
    Served,
    api_host,
    problem,
    routes_of,
    token_of,
)
from tests.pages import PAGES

UNKNOWN = "5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01"
CALLER = Caller(UNKNOWN, "user", "jwt")
LEEWAY_SECONDS = 10


@pytest.fixture
def host(migrated: Path, tmp_path: Path) -> ApiHost:
    return api_host(
        migrated,
        tmp_path,
        release_file=tmp_path / "release.json",
        slots=tuple(range(2, 32)),
        credentials_key=SecretStr(new_key()),
        session=SessionLimits(per_user=100),
        rate=RateLimits(starts_burst=100),
        max_body_bytes=1000,
    )


# Status for the user, another user, an operator and an admin; all others get 401.
OWN = (200, 403, 200, 200)
COMING = (202, 403, 202, 202)
BOOTING = (409, 403, 409, 409)
ALL = (200, 200, 200, 200)
EACH_OWN = (201, 201, 201, 201)
GONE = (204, 204, 204, 204)
OPERATORS = (403, 403, 200, 200)
NOT_THERE = (403, 403, 404, 404)  # to those who may ask
ADMINS = (403, 403, 403, 200)
TABLE: dict[tuple[str, str], tuple[int, int, int, int]] = {
    ("GET", "/api/auth/providers"): ALL,
    ("POST", "/api/auth/start"): (201, 403, 201, 201),
    ("GET", "/api/auth/sessions"): ALL,
    ("GET", "/api/auth/session/{session_id}"): OWN,
    ("DELETE", "/api/auth/session/{session_id}"): OWN,
    ("GET", "/api/auth/session/{session_id}/vm"): OWN,
    ("POST", "/api/auth/session/{session_id}/heartbeat"): OWN,
    ("GET", "/api/auth/session/{session_id}/oauth-url"): COMING,
    ("POST", "/api/auth/session/{session_id}/oauth-url"): COMING,
    ("GET", "/api/vm/auth/session/{session_id}/oauth-url"): COMING,
    ("POST", "/api/auth/session/{session_id}/oauth-code"): BOOTING,
    ("POST", "/api/vm/auth/session/{session_id}/oauth-code"): BOOTING,
    ("GET", "/api/auth/session/{session_id}/events"): OWN,
    ("POST", "/api/auth/session/{session_id}/tickets"): (201, 403, 201, 201),
    ("POST", "/api/auth/sign-in-link"): EACH_OWN,
    ("POST", "/api/auth/credentials/store"): EACH_OWN,
    ("GET", "/api/auth/credentials"): ALL,
    ("GET", "/api/auth/credentials/log"): ALL,
    ("DELETE", "/api/auth/credentials"): GONE,
    ("GET", "/api/auth/credentials/{provider}"): ALL,
    ("DELETE", "/api/auth/credentials/{provider}"): GONE,
    ("GET", "/api/vm"): ALL,
    ("GET", "/api/vm/{vm_id}"): OWN,
    ("GET", "/api/vm/{vm_id}/metrics"): OWN,
    ("GET", "/api/vm/{vm_id}/console"): OWN,
    ("GET", "/api/vm/{vm_id}/screenshot"): BOOTING,
    ("GET", "/api/auth/usage"): ALL,
    ("GET", "/api/admin/usage"): OPERATORS,
    ("DELETE", "/api/admin/tokens/{token_id}"): ADMINS,
    ("GET", "/api/admin/health/system"): OPERATORS,
    ("GET", "/api/admin/health/cpu"): OPERATORS,
    ("GET", "/api/admin/health/memory"): OPERATORS,
    ("GET", "/api/admin/health/disk"): OPERATORS,
    ("GET", "/api/admin/health/network"): OPERATORS,
    ("GET", "/api/admin/health/temperature"): OPERATORS,
    ("GET", "/api/admin/health/network-health"): OPERATORS,
    ("GET", "/api/admin/health/history"): OPERATORS,
    ("GET", "/api/admin/health/history.csv"): OPERATORS,
    ("GET", "/api/admin/health/history.json"): OPERATORS,
    ("GET", "/api/admin/overview"): OPERATORS,
    ("GET", "/api/admin/processes"): OPERATORS,
    ("GET", "/api/admin/alerts"): OPERATORS,
    ("GET", "/api/admin/webhooks/endpoints"): OPERATORS,
    ("POST", "/api/admin/webhooks/endpoints/{name}/try"): NOT_THERE,
    ("GET", "/api/admin/webhooks/deliveries"): OPERATORS,
    ("GET", "/api/admin/webhooks/deliveries/{delivery_id}"): NOT_THERE,
    ("POST", "/api/admin/webhooks/deliveries/{delivery_id}/resend"): NOT_THERE,
    ("GET", "/api/admin/templates"): OPERATORS,
    ("GET", "/api/admin/pool"): OPERATORS,
    ("GET", "/api/admin/images"): OPERATORS,
    ("GET", "/api/admin/images/{digest}"): NOT_THERE,
    ("GET", "/api/admin/images/{digest}/sbom"): NOT_THERE,
    ("GET", "/api/admin/images/{digest}/diff/{other}"): NOT_THERE,
    ("GET", "/api/admin/deployments"): OPERATORS,
    ("GET", "/api/admin/deployments/{deployment_id}"): NOT_THERE,
    ("GET", "/metrics"): OPERATORS,
    ("GET", "/openapi.json"): ALL,
    ("GET", "/docs"): ALL,
}
HEALTH = ("GET", "/api/auth/health")
REDEEM = ("POST", "/api/auth/redeem")
WEBSOCKETS = {("WS", "/api/auth/session/{session_id}/novnc/websock")}


def test_every_route_is_in_the_permission_table(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        assert routes_of(asked.app) == {*TABLE, HEALTH, REDEEM, *WEBSOCKETS, *PAGES}

    host.run(scenario)


@pytest.mark.parametrize("route", TABLE, ids=" ".join)
def test_permissions_of_each_route(host: ApiHost, route: tuple[str, str]) -> None:
    expected = dict.fromkeys(STRANGERS, 401) | dict(zip(USERS, TABLE[route], strict=True))

    async def scenario(asked: Served) -> None:
        session = await asked.start()
        ids = {"session_id": session["id"], "vm_id": session["vmId"], "provider": "claude"}
        ids |= {"digest": "0" * 64, "other": "1" * 64, "deployment_id": "20261121_101500-abcd"}
        token, _ = await asked.services.tokens.create(asked.users["user"], "to be revoked")
        ids |= {"token_id": token.id, "name": "front-end", "delivery_id": "1"}
        path = route[1].format(**ids)
        bodies = {
            "/api/auth/start": {"userId": asked.users["user"], "provider": "codex"},
            f"/api/auth/session/{session['id']}/tickets": {},
            f"/api/auth/session/{session['id']}/oauth-code": {"code": "4/0AbCD"},
            f"/api/vm/auth/session/{session['id']}/oauth-code": {"code": "4/0AbCD"},
            "/api/auth/credentials/store": {"provider": "codex", "credentials": {"token": "x"}},
        }
        for user in asked.users.values():
            await asked.services.credentials.store(user, "claude", b"{}")
        if path.endswith("/events"):  # otherwise the streams would not end
            await asked.ask("DELETE", f"/api/auth/session/{session['id']}")
        answered = {}
        for caller in CALLERS:
            answer = await asked.ask(route[0], path, caller, json=bodies.get(path))
            answered[caller] = answer.status_code
            if answer.status_code >= 400:
                assert answer.json()["status"] == answer.status_code
            if answer.status_code == 401:
                assert answer.headers["www-authenticate"].startswith("Bearer ")
        assert answered == expected

    host.run(scenario)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/nothing"),
        ("GET", "/api/auth/health/"),
        ("GET", "/api/auth/../auth/sessions"),
        ("HEAD", "/api/vm"),
        ("OPTIONS", "/api/vm"),
        ("POST", "/api/vm"),
        ("BREW", "/api/auth/start"),
        ("GET", "/api/auth/sessions?access_token="),
        ("GET", "/redoc"),
    ],
)
def test_only_health_answers_without_a_token(host: ApiHost, method: str, path: str) -> None:
    async def scenario(asked: Served) -> None:
        assert (await asked.ask("GET", HEALTH[1], "nobody")).status_code == 200
        assert (await asked.ask(method, path, "nobody")).status_code == 401

    host.run(scenario)


def test_token_in_the_query_works_for_docs_and_events_only(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        session = await asked.start()
        await asked.ask("DELETE", f"/api/auth/session/{session['id']}")
        query = {"access_token": asked.tokens["user"]}
        for path, status in {
            "/docs": 200,
            f"/api/auth/session/{session['id']}/events": 200,
            f"/api/auth/session/{session['id']}": 401,
            "/openapi.json": 401,
        }.items():
            answer = await asked.ask("GET", path, "nobody", params=query)
            assert answer.status_code == status, path
            # A proxy in front may ask for a password.
            basic = {"Authorization": "Basic dTpw"}
            answer = await asked.ask("GET", path, "nobody", basic, params=query)
            assert answer.status_code == status, path
        expired = {"access_token": asked.tokens["an expired JWT"]}
        told = await asked.ask("GET", "/docs", "nobody", params=expired)
        assert problem(told, 401, "not-authenticated")["detail"] == "the token has expired"

    host.run(scenario)


def milliseconds(at: str) -> int:
    """Return a time of the API as milliseconds since 1970."""
    return round(datetime.fromisoformat(at.replace("Z", "+00:00")).timestamp() * 1000)


def test_names_of_older_clients_are_accepted(host: ApiHost) -> None:
    names = {"claude_code": "claude", "codex_cli": "codex", "gemini_cli": "gemini"}

    async def scenario(asked: Served) -> None:
        for older, present in names.items():
            body = {"userId": asked.users["user"], "provider": older}
            session = (await asked.ask("POST", "/api/auth/start", json=body)).json()
            assert session["provider"] == present
            assert session["sessionId"] == session["id"]
            assert session["novncURL"] == f"/session/{session['id']}"
            assert session["browserIP"] == f"192.168.100.{2 + list(names).index(older)}"
            (listed,) = (await asked.ask("GET", "/api/auth/sessions?limit=1")).json()["sessions"]
            assert listed == session
            stored = {"provider": older, "credentials": {"token": older}}
            kept = await asked.ask("POST", "/api/auth/credentials/store", json=stored)
            assert kept.json()["provider"] == present
            assert kept.headers["location"].endswith(f"/{present}")
            found = await asked.ask("GET", f"/api/auth/credentials/{older}")
            assert found.json()["credentials"] == {"token": older}
            gone = await asked.ask("DELETE", f"/api/auth/credentials/{older}")
            assert gone.status_code == 204
            gone = await asked.ask("GET", f"/api/auth/credentials/{present}")
            problem(gone, 404, "credentials-not-found")
        key = {"Idempotency-Key": "one key"}
        for name, status in (("claude", 201), ("claude_code", 200), ("codex_cli", 409)):
            body = {"userId": asked.users["user"], "provider": name}
            answer = await asked.ask("POST", "/api/auth/start", json=body, headers=key)
            assert answer.status_code == status
        path = session["links"]["oauthUrl"]
        older_path = path.replace("/api/auth/", "/api/vm/auth/")
        first, second = [await asked.ask("GET", each) for each in (path, older_path)]
        assert (first.status_code, first.json()) == (second.status_code, second.json())

    host.run(scenario)


def test_providers_come_from_the_golden_image(host: ApiHost) -> None:
    record = host.settings.image_store / "images" / IMAGE_DIGEST / RECORD
    told = json.loads(record.read_bytes())

    async def scenario(asked: Served) -> None:
        async def names() -> list[str]:
            answer = await asked.ask("GET", "/api/auth/providers")
            return [each["name"] for each in answer.json()["providers"]]

        (claude,) = [
            each
            for each in (await asked.ask("GET", "/api/auth/providers")).json()["providers"]
            if each["name"] == "claude"
        ]
        assert claude == EXAMPLE
        tidy = {**told["providers"]["claude"], "name": "tidy", "older_names": ["tidy_cli"]}
        put(record, {**told, "providers": {"tidy": tidy}})
        assert await names() == ["tidy"]
        body = {"userId": asked.users["user"], "provider": "tidy_cli"}
        started = await asked.ask("POST", "/api/auth/start", json=body)
        assert (started.status_code, started.json()["provider"]) == (201, "tidy")
        refused = await asked.ask("POST", "/api/auth/start", json={**body, "provider": "claude"})
        (error,) = problem(refused, 422)["errors"]
        assert error["pointer"] == "body/provider"
        assert error["detail"] == "there is no such provider; choose one of tidy"
        put(record, {key: told[key] for key in told if key != "providers"})
        assert await names() == ["claude", "codex", "gemini"]
        assert not any(each.credentials for each in asked.services.providers().values())
        record.unlink()
        assert await names() == ["claude", "codex", "gemini"]

    def put(file: Path, record: dict[str, Any]) -> None:
        file.unlink()
        file.write_text(json.dumps(record))

    host.run(scenario)


def test_a_session_from_start_to_end(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        session = await asked.start()
        path, vms = session["links"]["self"], asked.services.vms
        assert (session["status"], session["boot"]["stage"]) == ("vm_creating", "none")
        await vms.launched(session["vmId"])
        launched = (await vms.get(session["vmId"])).started_at
        assert launched
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vms, "_clock", lambda: launched + timedelta(seconds=8.5))
            await vms.stage_reached(session["vmId"], "network")
        booting = (await asked.ask("GET", path)).json()
        assert (booting["status"], booting["boot"]["stage"]) == ("vm_starting", "network")
        assert booting["boot"]["timings"] == {"network": 8.5}
        await vms.ready(session["vmId"])
        vm = (await asked.ask("GET", session["links"]["vm"])).json()
        assert vm["vmId"] == session["vmId"]
        assert vm["vmIP"] == "192.168.100.2"
        assert vm["ports"] == {"agent": 8080, "vnc": 5901, "novnc": 6080}
        assert vm["imageDigest"] == IMAGE_DIGEST
        assert vm["created"] == vm["lastHeartbeat"] == milliseconds(session["createdAt"])
        beaten = (await asked.ask("POST", f"{path}/heartbeat")).json()
        assert beaten["status"] == "vm_created"
        vm = (await asked.ask("GET", session["links"]["vm"])).json()
        assert vm["lastHeartbeat"] == milliseconds(beaten["heartbeatAt"])
        assert beaten["browserIP"] == vm["vmIP"]
        ended = (await asked.ask("DELETE", path)).json()
        assert ended["status"] == "terminated"
        assert ended["endedAt"]
        assert ended["browserIP"] is None
        assert "failure" in ended
        assert (await asked.ask("DELETE", path)).json() == ended
        problem(await asked.ask("GET", session["links"]["vm"]), 410, "session-expired")
        problem(await asked.ask("POST", f"{path}/heartbeat"), 410, "session-expired")

    host.run(scenario)


def test_failed_session_shows_its_reason(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        session = await asked.start()
        vms = asked.services.vms
        await vms.launched(session["vmId"])
        await vms.stage_reached(session["vmId"], "init")
        await vms.fail(session["vmId"], "no network within 120 s", ["a.service"], "last words")
        found = (await asked.ask("GET", session["links"]["self"])).json()
        assert (found["status"], found["reason"]) == ("failed", "no network within 120 s")
        assert found["failure"] == {
            "reason": "no network within 120 s",
            "stage": "init",
            "failedUnits": ["a.service"],
            "serialTail": "last words",
        }

    host.run(scenario)


def test_start_answers_with_the_location_of_the_session(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        body = {"userId": asked.users["user"], "provider": "gemini"}
        answer = await asked.ask("POST", "/api/auth/start", json=body)
        assert answer.headers["location"] == answer.json()["links"]["self"]
        found = await asked.ask("GET", answer.headers["location"])
        assert found.json() == answer.json()

    host.run(scenario)


def test_same_idempotency_key_returns_the_same_session(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        key = {"Idempotency-Key": "once, please"}
        body = {"userId": asked.users["user"], "provider": "claude"}
        first, second = [
            await asked.ask("POST", "/api/auth/start", json=body, headers=key) for _ in range(2)
        ]
        assert (first.status_code, second.status_code) == (201, 200)
        assert second.headers["location"] == first.headers["location"]
        assert first.json() == second.json()
        other = {**body, "provider": "codex"}
        refused = await asked.ask("POST", "/api/auth/start", json=other, headers=key)
        assert "key" in problem(refused, 409, "session")["detail"]

    host.run(scenario)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"userId": "me", "provider": "claude"}, "body/userId"),
        ({"userId": UNKNOWN, "provider": "tidy"}, "body/provider"),
        ({"userId": UNKNOWN}, "body/provider"),
        ({"userId": UNKNOWN, "provider": "claude", "role": "admin"}, "body/role"),
        ([], "body"),
    ],
)
def test_a_malformed_start_is_422(host: ApiHost, body: Any, pointer: str) -> None:
    async def scenario(asked: Served) -> None:
        told = problem(await asked.ask("POST", "/api/auth/start", "operator", json=body), 422)
        assert pointer in [error["pointer"] for error in told["errors"]]

    host.run(scenario)


JSON = "application/json"


@pytest.mark.parametrize(
    ("content", "kind", "status", "words"),
    [
        ('{"userId": 1, "userId": 2}', JSON, 400, "an object has the same key twice"),
        ('{"userId": {"a": 1, "\\u0061": 2}}', JSON, 400, "an object has the same key twice"),
        ("{}", "application/x-www-form-urlencoded", 422, f"with the header Content-Type: {JSON}"),
        ("{}", "", 422, f"with the header Content-Type: {JSON}"),
        ("7", JSON, 422, "must be a JSON object"),
        ("{", JSON, 422, "JSON decode error"),
        ("[" * 50_000, JSON, 400, "nested too deeply"),
        (b'"\xff"', JSON, 400, "not JSON in UTF-8"),
    ],
)
def test_a_body_that_is_no_json_object_is_told_why(
    host: ApiHost, content: str | bytes, kind: str, status: int, words: str
) -> None:
    async def scenario(asked: Served) -> None:
        headers = {"Content-Type": kind} if kind else {}
        answer = await asked.ask(
            "POST", "/api/auth/start", "user", content=content, headers=headers
        )
        told = problem(answer, status)
        assert words in (told["errors"][0]["detail"] if status == 422 else told["detail"])

    host.run(scenario, max_body_bytes=100_000)


def test_every_body_is_read_as_json_with_each_key_once(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        paths = asked.app.openapi()["paths"]
        with_body = [
            path for path, calls in paths.items() if "requestBody" in calls.get("post", {})
        ]
        assert len(with_body) >= 5
        for path in with_body:
            where = path.replace("{session_id}", UNKNOWN)
            answer = await asked.ask(
                "POST", where, "admin", content='{"a": 1, "a": 2}', headers={"Content-Type": JSON}
            )
            assert "same key twice" in problem(answer, 400)["detail"]

    host.run(scenario)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("start", {f"key-{number}": "" for number in range(50)}),
        ("start", {f"key-{number}": "" for number in range(10_000)}),
        ("start", {"x" * 100_000: ""}),
        ("start", {"provider": "x" * 100_000}),
        ("credentials/store", {f"key-{number}": "" for number in range(10_000)}),
        ("credentials/store", [""] * 10_000),
    ],
)
def test_errors_about_a_malformed_body_are_limited(host: ApiHost, path: str, body: Any) -> None:
    async def scenario(asked: Served) -> None:
        answer = await asked.ask("POST", f"/api/auth/{path}", "operator", json=body)
        told = problem(answer, 422)
        assert 1 <= len(told["errors"]) <= 20
        assert len(answer.content) < 8000

    host.run(scenario, max_body_bytes=1024 * 1024)


def test_omitted_validation_errors_are_counted(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        body = {f"key-{number}": "" for number in range(50)}
        told = problem(await asked.ask("POST", "/api/auth/start", "operator", json=body), 422)
        assert "52 errors" in told["detail"]

    host.run(scenario)


def test_numbers_in_queries_have_only_digits(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        for path, name in (
            ("/api/auth/sessions", "limit"),
            ("/api/vm", "limit"),
            ("/api/admin/usage", "days"),
            ("/api/admin/webhooks/deliveries", "before"),
            ("/api/admin/health/history", "points"),
        ):
            for number in ("1_0", "+5", " 5", "5.0", "0x5", "5e0", "\u0665", ""):
                answer = await asked.ask("GET", f"{path}?{urlencode({name: number})}", "operator")
                (told,) = problem(answer, 422)["errors"]
                assert told["pointer"] == f"query/{name}", number
        for hours, status in (("1.5", 200), ("2", 200), ("1_0", 422), ("1e1", 422), ("-1", 422)):
            answer = await asked.ask("GET", f"/api/admin/health/history?hours={hours}", "operator")
            assert answer.status_code == status, hours

    host.run(scenario)


@pytest.mark.parametrize("key", ["", "x" * 201, "tab\there", "ü"])
def test_malformed_idempotency_key_is_422(host: ApiHost, key: str) -> None:
    async def scenario(asked: Served) -> None:
        body = {"userId": asked.users["user"], "provider": "claude"}
        named = {**asked.headers("user"), "Idempotency-Key": key}
        sent = [(name.encode(), value.encode()) for name, value in named.items()]
        answer = await asked.client.post("/api/auth/start", json=body, headers=sent)
        assert problem(answer, 422)["errors"][0]["pointer"] == "header/idempotency-key"

    host.run(scenario)


@pytest.mark.parametrize("path", ["/api/auth/session/{}", "/api/auth/session/{}/vm", "/api/vm/{}"])
def test_malformed_ids_are_422_and_unknown_ids_404(host: ApiHost, path: str) -> None:
    async def scenario(asked: Served) -> None:
        for caller in ("user", "operator"):
            problem(await asked.ask("GET", path.format("not-a-uuid"), caller), 422)
            assert (await asked.ask("GET", path.format(UNKNOWN), caller)).status_code == 404

    host.run(scenario)


def test_ids_are_case_insensitive(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        user_id = asked.users["user"].upper()
        capitals = {"Authorization": f"Bearer {token_of(user_id)}"}
        body = {"userId": user_id, "provider": "claude"}
        answer = await asked.ask("POST", "/api/auth/start", headers=capitals, json=body)
        session = answer.json()
        assert session["userId"] == asked.users["user"]
        session_id, vm_id = session["id"].upper(), session["vmId"].upper()
        stored = {"provider": "claude", "credentials": {"token": "x"}, "sessionId": session_id}
        kept = await asked.ask("POST", "/api/auth/credentials/store", headers=capitals, json=stored)
        assert kept.json()["sessionId"] == session["id"]
        for path in (
            f"/api/auth/session/{session_id}",
            f"/api/auth/session/{session_id}/vm",
            f"/api/auth/sessions?before={session_id}",
            f"/api/vm/{vm_id}",
            f"/api/vm/{vm_id}/console",
            f"/api/vm?before={vm_id}",
        ):
            assert (await asked.ask("GET", path, headers=capitals)).status_code == 200, path

    host.run(scenario)


def test_start_for_unknown_or_other_users_is_refused(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        body = {"userId": UNKNOWN, "provider": "claude"}
        start = "/api/auth/start"
        problem(await asked.ask("POST", start, "operator", json=body), 404, "user-not-found")
        problem(await asked.ask("POST", start, "user", json=body), 403, "not-allowed")

    host.run(scenario)


def test_too_many_sessions_of_a_user_are_refused(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        held = [(await asked.start())["id"] for _ in range(2)]
        body = {"userId": asked.users["user"], "provider": "claude"}
        answer = await asked.ask("POST", "/api/auth/start", json=body)
        told = problem(answer, 409, "too-many-sessions")
        assert all(session_id in told["detail"] for session_id in held)

    host.run(scenario, session=SessionLimits(per_user=2))


def test_no_free_slot_names_the_oldest_idle_session(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        idle, used = await asked.start(), await asked.start("other user")
        await asked.ask("POST", f"{used['links']['self']}/heartbeat", "other user")
        body = {"userId": asked.users["user"], "provider": "claude"}
        answer = await asked.ask("POST", "/api/auth/start", json=body)
        told = problem(answer, 503, "no-free-slot")
        assert (told["slots"], told["oldestIdleSession"]) == (2, idle["id"])
        assert int(answer.headers["retry-after"]) > 0

    host.run(scenario, slots=(2, 3))


def test_host_without_slots_still_answers_requests(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        body = {"userId": asked.users["user"], "provider": "claude"}
        told = problem(await asked.ask("POST", "/api/auth/start", json=body), 503, "no-free-slot")
        assert told["detail"] == "this host has no slots for VMs"
        assert (await asked.ask("GET", "/api/auth/sessions")).json() == {
            "sessions": [],
            "next": None,
        }

    host.run(scenario, slots=())


def test_host_without_an_image_still_answers_requests(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        body = {"userId": asked.users["user"], "provider": "claude"}
        told = problem(await asked.ask("POST", "/api/auth/start", json=body), 503, "image")
        assert told["detail"].startswith("no golden image")

    (host.settings.image_store / "golden-rootfs.ext4").unlink()
    host.run(scenario)


@pytest.mark.parametrize("path", ["/api/auth/sessions", "/api/vm", "/api/vm?all=true"])
def test_number_of_queries_does_not_grow_with_a_list(host: ApiHost, path: str) -> None:
    async def scenario(asked: Served) -> None:
        async def questions(caller: str) -> tuple[int, int]:
            """Return the number of queries and of listed items."""
            asked_for: list[str] = []
            engine = asked.services.database.engine.sync_engine
            note = lambda *words: asked_for.append(words[2])  # noqa: E731 - its name is its whole
            sa.event.listen(engine, "before_cursor_execute", note)
            listed, _next = (await asked.ask("GET", path, caller)).json().values()
            sa.event.remove(engine, "before_cursor_execute", note)
            return len(asked_for), len(listed)

        for _ in range(50):
            await asked.start("user")
        await asked.start("other user")
        for caller in ("operator", "user"):
            await asked.ask("GET", path, caller)  # notes when its token was used
        many, fifty = await questions("user")
        few, one = await questions("other user")
        assert (many, one) == (few, 1)
        assert fifty == 50

    limits = {"session": SessionLimits(per_user=99), "rate": RateLimits(starts_burst=99)}
    host.run(scenario, slots=tuple(range(2, 60)), **limits)


def test_lists_are_paged(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        for _ in range(3):
            await asked.start("user")
        others = await asked.start("other user")
        for path, name, key in (
            ("/api/auth/sessions", "sessions", "id"),
            ("/api/vm", "vms", "vmId"),
        ):
            whole = (await asked.ask("GET", path)).json()
            assert whole["next"] is None
            first = (await asked.ask("GET", f"{path}?limit=2")).json()
            assert first["next"] == first[name][-1][key]
            last = (await asked.ask("GET", f"{path}?limit=2&before={first['next']}")).json()
            assert last["next"] is None
            assert first[name] + last[name] == whole[name]
            assert (await asked.ask("GET", f"{path}?before={UNKNOWN}")).status_code == 404
            theirs = f"{path}?before={others[key]}"
            assert (await asked.ask("GET", theirs)).status_code == 403

    host.run(scenario, session=SessionLimits(per_user=9))


def test_lists_show_only_what_belongs_to_the_caller(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        mine, past, others = [
            await asked.start(caller) for caller in ("user", "user", "other user")
        ]
        await asked.ask("DELETE", past["links"]["self"])
        await asked.services.vms.released(past["vmId"])

        async def ids(path: str, caller: str) -> set[str]:
            listed, _next = (await asked.ask("GET", path, caller)).json().values()
            return {each.get("id") or each["vmId"] for each in listed}

        sessions, vms = "/api/auth/sessions", "/api/vm"
        assert await ids(sessions, "user") == {mine["id"], past["id"]}
        assert await ids(f"{sessions}?live=true", "user") == {mine["id"]}
        assert await ids(sessions, "operator") == {mine["id"], past["id"], others["id"]}
        assert len(await ids(f"{sessions}?limit=2", "operator")) == 2
        assert await ids(vms, "user") == {mine["vmId"]}
        assert await ids(f"{vms}?all=true", "user") == {mine["vmId"], past["vmId"]}
        assert await ids(vms, "operator") == {mine["vmId"], others["vmId"]}
        assert len(await ids(f"{vms}?all=true", "operator")) == 3
        assert (await asked.ask("GET", f"{vms}/{past['vmId']}")).status_code == 200
        assert (await asked.ask("GET", f"{vms}/{past['vmId']}", "other user")).status_code == 403

    host.run(scenario)


def test_console_as_text_and_as_json_lines(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        session = await asked.start()
        path = f"/api/vm/{session['vmId']}/console"
        assert (await asked.ask("GET", path)).text == ""
        said = b"one\r\n\x1b[32mtwo\x1b[0m\r\nthree\r\n"
        host.hypervisor.say(2, session["vmId"], said)
        answer = await asked.ask("GET", path)
        assert answer.content == said
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        json_wanted = {"Accept": "application/json"}
        lines = await asked.ask("GET", f"{path}?tail=2", headers=json_wanted)
        assert lines.json() == {"vmId": session["vmId"], "lines": ["two", "three"]}
        await asked.ask("DELETE", session["links"]["self"])
        await asked.services.vms.released(session["vmId"])
        assert (await asked.ask("GET", f"{path}?follow=true")).content == said
        host.hypervisor.console(2, session["vmId"]).unlink()
        problem(await asked.ask("GET", path), 410, "session-expired")

    host.run(scenario)


@pytest.mark.parametrize("query", ["", "?follow=true"])
@pytest.mark.parametrize("accept", ["*/*", "application/json"])
def test_console_replaced_by_another_file_type_is_refused(
    host: ApiHost, query: str, accept: str
) -> None:
    async def scenario(asked: Served) -> None:
        session = await asked.start()
        path = f"/api/vm/{session['vmId']}/console{query}"
        host.hypervisor.say(2, session["vmId"], b"")
        file = host.hypervisor.console(2, session["vmId"])
        secret = file.parent / "secret"
        secret.write_text("a secret")
        replacements: dict[str, Callable[[], None]] = {
            "a symbolic link": lambda: file.symlink_to(secret),
            "a FIFO": lambda: os.mkfifo(file),
            "a hard link": lambda: file.hardlink_to(secret),
        }
        for kind, put in replacements.items():
            file.unlink()
            put()
            answer = await asked.ask("GET", path, headers={"Accept": accept})
            problem(answer, 502, "vm")
            assert f"serial.log is {kind}" in answer.json()["detail"]
            assert "a secret" not in answer.text

    host.run(scenario)


def test_vm_metrics_name_what_is_unavailable(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        session = await asked.start()
        path = f"/api/vm/{session['vmId']}/metrics"
        told = (await asked.ask("GET", path)).json()
        assert told["unavailable"]["cpu"] == "the VM has no process"
        await asked.ask("DELETE", session["links"]["self"])
        await asked.services.vms.released(session["vmId"])
        problem(await asked.ask("GET", path), 410, "session-expired")

    host.run(scenario)


def events_of(text: str) -> list[tuple[int, str, dict[str, Any]]]:
    found = re.findall(r"id: (\d+)\nevent: (\w+)\ndata: (.*)\n\n", text)
    return [(int(number), kind, json.loads(data)) for number, kind, data in found]


def test_event_stream_resumes_after_last_event_id(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        session = await asked.start()
        await asked.services.vms.launched(session["vmId"])
        await asked.services.vms.stage_reached(session["vmId"], "kernel")
        await asked.services.vms.fail(session["vmId"], "it went away")
        path = session["links"]["events"]
        answer = await asked.ask("GET", path)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.text.startswith("retry: ")
        events = events_of(answer.text)
        assert [(kind, data.get("state", data.get("stage"))) for _, kind, data in events] == [
            ("state", "vm_creating"),
            ("state", "vm_starting"),
            ("stage", "kernel"),
            ("state", "failed"),
        ]
        assert events[-1][2]["reason"] == "it went away"
        for number in range(len(events)):
            last = {"Last-Event-ID": str(events[number][0])}
            resumed = await asked.ask("GET", path, headers=last)
            assert events_of(resumed.text) == events[number + 1 :]
        assert resumed.status_code == 204
        problem(await asked.ask("GET", path, headers={"Last-Event-ID": "x"}), 422)

    host.run(scenario)


def test_event_stream_sends_events_until_the_service_ends(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        session = await asked.start()
        news = stream(asked.services, CALLER, session["id"], 0)

        async def following() -> str:
            while (news_item := await asyncio.wait_for(news.__anext__(), 60)).startswith(":"):
                pass
            return news_item

        assert (await following()).startswith("retry: ")
        assert "vm_creating" in await following()
        waiting = asyncio.create_task(following())
        await asyncio.sleep(0)
        await asked.services.vms.launched(session["vmId"])
        assert "vm_starting" in await waiting
        waiting = asyncio.create_task(following())
        await asyncio.sleep(0)
        await asked.services.end()
        with pytest.raises(StopAsyncIteration):
            await waiting

    host.run(scenario)


def test_number_of_streams_per_user_is_limited(host: ApiHost) -> None:
    """Event and console streams share one limit per user."""

    async def scenario(asked: Served) -> None:
        session, other = await asked.start(), await asked.start("other user")
        events, console = session["links"]["events"], f"/api/vm/{session['vmId']}/console"
        caller = replace(CALLER, user_id=asked.users["user"])
        streams = [stream(asked.services, caller, session["id"], 0) for _ in range(2)]
        for each in streams:
            await each.__anext__()
        host.hypervisor.say(2, session["vmId"], b"one\r\n")
        for one in (session, other):
            await asked.ask("DELETE", one["links"]["self"], "operator")
            await asked.services.vms.released(one["vmId"])
        for path in (events, f"{console}?follow=true"):
            refused = await asked.ask("GET", path)
            assert problem(refused, 429)["detail"].startswith("too many open streams")
            assert refused.headers["Retry-After"]
        assert (await asked.ask("GET", other["links"]["events"], "other user")).status_code == 200
        assert (await asked.ask("GET", console)).status_code == 200
        await streams[0].aclose()
        for path in (events, f"{console}?follow=true"):
            assert (await asked.ask("GET", path)).status_code == 200
        await streams[1].aclose()

    host.run(scenario, rate=RateLimits(streams=2))


def test_event_stream_ends_when_its_token_expires(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        session = await asked.start()
        soon = replace(CALLER, expires_at=now() + timedelta(seconds=0.2))
        parts = [part async for part in stream(asked.services, soon, session["id"], 0)]
        assert parts[0].startswith("retry: ")
        assert parts[-1] == 'event: over\ndata: {"reason": "the token has expired"}\n\n'

    host.run(scenario)


def test_followed_console_ends_when_its_token_expires(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        session = await asked.start()
        slot = (await asked.services.vms.get(session["vmId"])).slot
        host.hypervisor.say(slot, session["vmId"], b"hello\n")
        path = f"/api/vm/{session['vmId']}/console?follow=true"
        for _ in range(100):  # a token of less than a second may expire on its way
            token = token_of(asked.users["user"], 1 - LEEWAY_SECONDS)
            answer = await asked.client.get(path, headers={"Authorization": f"Bearer {token}"})
            if answer.status_code != 401:
                break
        assert answer.text == "hello\n"
        assert (await asked.client.get(path, headers=answer.request.headers)).status_code == 401

    host.run(scenario)


def test_rate_limit_answers_429_with_retry_after(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        for _ in range(3):
            assert (await asked.ask("GET", "/api/vm")).status_code == 200
        answer = await asked.ask("GET", "/api/vm")
        problem(answer, 429)
        assert int(answer.headers["retry-after"]) > 0
        assert (await asked.ask("GET", "/api/vm", "other user")).status_code == 200
        for _ in range(10):
            assert (await asked.ask("GET", HEALTH[1], "nobody")).status_code == 200

    host.run(scenario, rate=RateLimits(requests_per_second=0.001, burst=3))


def test_start_rate_limit_does_not_limit_reads(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        session = await asked.start()
        body = {"userId": asked.users["user"], "provider": "claude"}
        problem(await asked.ask("POST", "/api/auth/start", json=body), 429)
        assert (await asked.ask("GET", session["links"]["self"])).status_code == 200

    host.run(scenario, rate=RateLimits(starts_per_minute=0.01, starts_burst=1))


def test_credentials_rate_limit_does_not_limit_the_list(host: ApiHost) -> None:
    """Each use adds an entry to the log and sends a webhook."""

    async def scenario(asked: Served) -> None:
        path = "/api/auth/credentials"
        body = {"provider": "claude", "credentials": {"a": 1}}
        for _ in range(2):
            stored = await asked.ask("POST", f"{path}/store", json=body)
            assert stored.status_code in (200, 201)
        for method, place in (
            ("POST", f"{path}/store"),
            ("GET", f"{path}/claude"),
            ("DELETE", f"{path}/claude"),
            ("DELETE", path),
        ):
            sent = body if method == "POST" else None
            problem(await asked.ask(method, place, json=sent), 429)
        assert (await asked.ask("GET", path)).status_code == 200

    host.run(scenario, rate=RateLimits(credentials_per_minute=0.01, credentials_burst=2))


def test_answers_have_no_store_headers(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        for path in ("/api/vm", "/docs", "/nothing"):
            headers = (await asked.ask("GET", path)).headers
            assert headers["cache-control"] == "no-store"
            assert headers["x-content-type-options"] == "nosniff"

    host.run(scenario)


def test_documentation_loads_no_external_files(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        answer = await asked.ask("GET", "/docs")
        assert "GET /api/auth/session/{session_id}/events" in answer.text
        assert not re.search(r"<script|<link|<img|src=|href=|url\(", answer.text)
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")

    host.run(scenario)


def test_examples_match_their_models() -> None:
    SessionAnswer.model_validate(SESSION_EXAMPLE)
    VmAnswer.model_validate(VM_EXAMPLE)
    SessionVmAnswer.model_validate(SESSION_VM_EXAMPLE)
    for status, answer in error_responses(400, 404, 409, 410, 422).items():
        (content,) = answer["content"].values()
        assert Problem.model_validate(content["example"]).status == status


def _operations(app: FastAPI) -> dict[tuple[str, str], dict[str, Any]]:
    paths = app.openapi()["paths"]
    return {
        (method.upper(), path): operation
        for path, operations in paths.items()
        for method, operation in operations.items()
    }


def test_every_route_documents_its_refusals_with_examples(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        operations = _operations(asked.app)
        assert set(operations) == routes_of(asked.app) - WEBSOCKETS - set(PAGES)
        for route, operation in operations.items():
            if route in (HEALTH, REDEEM):
                continue
            assert {"401", "403", "413", "429", "503"} <= set(operation["responses"]), route
            assert operation["security"], route
            assert operation["summary"], route
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    content = answer["content"]["application/problem+json"]
                    assert content["example"]["status"] == int(status)

    host.run(scenario)

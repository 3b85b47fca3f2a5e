"""Credentials over the API: their owner, what is accepted, and where they must never appear."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from polydev.client.credentials_key import new_key
from polydev.controller.api.credentials import (
    EXAMPLE,
    LOCKED,
    MAX_BYTES,
    NO_KEY,
    NONE_STORED,
    STORED_EXAMPLE,
    CredentialsAnswer,
    StoreRequest,
)
from polydev.controller.app import create_app
from polydev.controller.logs import QUIET, configure_logs
from polydev.controller.settings import SessionLimits
from polydev.errors import ConfigError
from tests.api import ApiHost, Served, StillHypervisor, api_host, problem

PATH = "/api/auth/credentials"
UNKNOWN = "5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01"
MARKER = "marker-of-a-secret-that-nobody-sees"
SECRET = {"tokens": {"access": MARKER, "refresh": ["ü", 1.5, None, True]}, "expires": 10**30}


@pytest.fixture
def host(migrated: Path, tmp_path: Path) -> ApiHost:
    return api_host(
        migrated,
        tmp_path,
        slots=(2, 3, 4),
        credentials_key=SecretStr(new_key()),
        session=SessionLimits(per_user=100),
    )


def in_database(host: ApiHost, statement: str, *values: str) -> None:
    with closing(sqlite3.connect(host.database)) as database, database:
        database.execute(statement, values)


async def store(asked: Served, caller: str = "user", **body: Any) -> httpx.Response:
    sent = {"provider": "claude", "credentials": SECRET, **body}
    return await asked.ask("POST", f"{PATH}/store", caller, json=sent)


async def in_state(asked: Served, caller: str, state: str) -> str:
    """Return the id of a session of the caller in this state."""
    session = await asked.start(caller)
    services = asked.services
    await services.vms.launched(session["vmId"])
    if state != "vm_starting":
        await services.vms.ready(session["vmId"])
    if state == "oauth_pending":
        await services.sessions.apply(session["id"], "oauth_started")
    found = (await asked.ask("GET", session["links"]["self"], caller)).json()
    assert found["status"] == state
    return str(session["id"])


def test_credentials_are_stored_read_and_removed(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        made = await store(asked)
        assert made.status_code == 201
        assert made.headers["location"] == f"{PATH}/claude"
        metadata = made.json()
        assert set(metadata) == set(STORED_EXAMPLE)
        assert (metadata["provider"], metadata["sessionId"]) == ("claude", None)
        assert metadata["createdAt"] == metadata["updatedAt"]
        found = await asked.ask("GET", made.headers["location"])
        assert found.json() == {**metadata, "credentials": SECRET, "sealed": None}
        assert found.headers["content-type"] == "application/json"
        assert (await asked.ask("GET", PATH)).json() == {"credentials": [metadata]}
        removed = await asked.ask("DELETE", f"{PATH}/claude")
        assert (removed.status_code, removed.content) == (204, b"")
        for method in ("GET", "DELETE"):
            problem(await asked.ask(method, f"{PATH}/claude"), 404, "credentials-not-found")
        assert (await asked.ask("GET", PATH)).json() == {"credentials": []}

    host.run(scenario)


def test_storing_again_replaces_the_credentials(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        session = await in_state(asked, "user", "vm_created")
        first = (await store(asked, sessionId=session)).json()
        again = await store(asked, credentials={"token": "new"})
        assert again.status_code == 200
        assert again.headers["location"] == f"{PATH}/claude"
        told = again.json()
        assert told["createdAt"] == first["createdAt"] < told["updatedAt"]
        assert (first["sessionId"], told["sessionId"]) == (session, None)
        found = (await asked.ask("GET", f"{PATH}/claude")).json()
        assert found["credentials"] == {"token": "new"}
        assert (await store(asked, provider="gemini")).status_code == 201
        listed = (await asked.ask("GET", PATH)).json()["credentials"]
        assert [each["provider"] for each in listed] == ["claude", "gemini"]
        assert (await asked.ask("DELETE", PATH)).status_code == 204
        assert (await asked.ask("GET", PATH)).json() == {"credentials": []}
        assert (await asked.ask("DELETE", PATH)).status_code == 204

    host.run(scenario)


def test_callers_see_only_their_own_credentials(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        assert (await store(asked)).status_code == 201
        for caller in ("other user", "operator", "admin"):
            assert (await asked.ask("GET", PATH, caller)).json() == {"credentials": []}
            for method in ("GET", "DELETE"):
                answer = await asked.ask(method, f"{PATH}/claude", caller)
                problem(answer, 404, "credentials-not-found")
            own = {"of": caller}
            assert (await store(asked, caller, credentials=own)).status_code == 201
            found = (await asked.ask("GET", f"{PATH}/claude", caller)).json()
            assert found["credentials"] == own
            assert (await asked.ask("DELETE", PATH, caller)).status_code == 204
        assert (await asked.ask("GET", f"{PATH}/claude")).json()["credentials"] == SECRET

    host.run(scenario)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("vm_starting", "vm_starting"),
        ("vm_created", "vm_created"),
        ("oauth_pending", "authenticated"),
    ],
)
def test_storing_authenticates_a_session_that_waits_for_login(
    host: ApiHost, before: str, after: str
) -> None:
    async def scenario(asked: Served) -> None:
        session = await in_state(asked, "user", before)
        news = len(await asked.services.sessions.news(session))
        for status in (201, 200):
            answer = await store(asked, sessionId=session)
            assert answer.status_code == status
            assert answer.json()["sessionId"] == session
            found = (await asked.ask("GET", f"/api/auth/session/{session}")).json()
            assert found["status"] == after
            receipt = found["credentialsReceipt"]
            assert (receipt is None) == (before == after)
        told = (await asked.services.sessions.news(session))[news:]
        kinds = [] if before == after else ["state", "credentials", "credentials"]
        assert [each.kind for each in told] == kinds
        if receipt:
            del receipt["at"]
            assert dict(told[-1].data) == {**receipt, "kept": True}

    host.run(scenario)


@pytest.mark.parametrize("caller", ["other user", "operator", "admin"])
def test_session_of_another_user_is_refused(host: ApiHost, caller: str) -> None:
    async def scenario(asked: Served) -> None:
        session = await in_state(asked, "user", "oauth_pending")
        problem(await store(asked, caller, sessionId=session), 403, "not-allowed")
        assert (await asked.ask("GET", PATH, caller)).json() == {"credentials": []}
        found = (await asked.ask("GET", f"/api/auth/session/{session}")).json()
        assert found["status"] == "oauth_pending"

    host.run(scenario)


def test_unsuitable_sessions_are_refused_without_storing(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        problem(await store(asked, sessionId=UNKNOWN), 404, "session-not-found")
        session = await in_state(asked, "user", "oauth_pending")
        wrong = await store(asked, sessionId=session, provider="codex")
        assert "claude" in problem(wrong, 422, "wrong-provider")["detail"]
        await asked.ask("DELETE", f"/api/auth/session/{session}")
        problem(await store(asked, sessionId=session), 410, "session-expired")
        assert (await asked.ask("GET", PATH)).json() == {"credentials": []}

    host.run(scenario)


def of_size(size: int) -> dict[str, str]:
    return {"x": "a" * (size - len('{"x":""}'))}


def nested(levels: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for _ in range(levels):
        made = {"x": made}
    return made


@pytest.mark.parametrize(
    "credentials", [of_size(MAX_BYTES), nested(300), {"": ""}, {"credentials": {"a": [[[]]]}}]
)
def test_any_json_object_is_returned_unchanged(host: ApiHost, credentials: dict[str, Any]) -> None:
    async def scenario(asked: Served) -> None:
        assert (await store(asked, credentials=credentials)).status_code == 201
        found = await asked.ask("GET", f"{PATH}/claude")
        assert found.json()["credentials"] == credentials

    host.run(scenario)


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"credentials": {}}, "body/credentials"),
        ({"credentials": MARKER}, "body/credentials"),
        ({"credentials": [MARKER]}, "body/credentials"),
        ({"credentials": None}, "body/credentials"),
        ({"credentials": of_size(MAX_BYTES + 1)}, "body/credentials"),
        ({"credentials": {MARKER: float("inf")}}, "body/credentials"),
        ({"credentials": {MARKER: float("nan")}}, "body/credentials"),
        ({"credentials": {MARKER: "\ud800"}}, "body/credentials"),
        ({"credentials": {f"{MARKER}\ud800": 1}}, "body/credentials"),
        ({"provider": MARKER}, "body/provider"),
        ({"provider": None}, "body/provider"),
        ({"sessionId": MARKER}, "body/sessionId"),
        ({MARKER: MARKER}, "body"),
        ({"session_id": UNKNOWN}, "body"),
    ],
    ids=[
        "empty",
        "text",
        "list",
        "null",
        "too-long",
        "infinity",
        "no-number",
        "surrogate",
        "surrogate-in-key",
        "provider",
        "no-provider",
        "session",
        "unknown-key",
        "key-in-snake-case",
    ],
)
def test_malformed_credentials_are_422_and_not_quoted(
    host: ApiHost, changes: dict[str, Any], pointer: str
) -> None:
    async def scenario(asked: Served) -> None:
        body = {"provider": "claude", "credentials": {"token": MARKER}, **changes}
        headers = {"Content-Type": "application/json"}  # httpx itself would refuse some of it
        sent = json.dumps(body)
        answer = await asked.ask("POST", f"{PATH}/store", content=sent, headers=headers)
        told = problem(answer, 422)
        assert [each["pointer"] for each in told["errors"]] == [pointer]
        assert "marker" not in answer.text
        assert "found" not in answer.text
        assert (await asked.ask("GET", PATH)).json() == {"credentials": []}

    host.run(scenario)


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (f'{{"credentials": {{"{MARKER}": ', "application/json", 422),
        (json.dumps([MARKER]), "application/json", 422),
        (json.dumps({"provider": "claude", "credentials": {"x": MARKER}}), "text/plain", 422),
        (f"provider=claude&{MARKER}={MARKER}", "application/x-www-form-urlencoded", 422),
        (f'{{"x": {"[" * 200_000}"{MARKER}"', "application/json", 400),
        (f'{{"{MARKER}": {"9" * 5000}}}', "application/json", 400),
    ],
    ids=["half", "list", "text", "form", "deep", "long number"],
)
def test_body_that_is_not_a_json_object_is_refused_and_not_quoted(
    host: ApiHost, content: str, kind: str, status: int
) -> None:
    async def scenario(asked: Served) -> None:
        headers = {"Content-Type": kind}
        answer = await asked.ask("POST", f"{PATH}/store", content=content, headers=headers)
        problem(answer, status)
        assert "marker" not in answer.text

    host.run(scenario)


def test_an_unknown_provider_is_422(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        for method in ("GET", "DELETE"):
            told = problem(await asked.ask(method, f"{PATH}/tidy"), 422)
            (error,) = told["errors"]
            assert error["pointer"] == "path/provider"
            assert "choose one of claude, codex, copilot, gemini" in error["detail"]
            problem(await asked.ask(method, f"{PATH}/..%00"), 422)

    host.run(scenario)


def test_credentials_of_a_removed_provider_can_be_read_and_deleted(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        await asked.services.credentials.store(asked.users["user"], "tidy", b'{"token":"x"}')
        (listed,) = (await asked.ask("GET", PATH)).json()["credentials"]
        assert listed["provider"] == "tidy"
        found = await asked.ask("GET", f"{PATH}/tidy")
        assert found.json()["credentials"] == {"token": "x"}
        problem(await store(asked, provider="tidy"), 422)
        assert (await asked.ask("DELETE", f"{PATH}/tidy")).status_code == 204
        problem(await asked.ask("GET", f"{PATH}/tidy"), 422)

    host.run(scenario)


def test_answers_have_no_store_header(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        for method, path in (
            ("POST", "/store"),
            ("GET", ""),
            ("GET", "/claude"),
            ("DELETE", "/claude"),
            ("DELETE", ""),
        ):
            body = {"provider": "claude", "credentials": SECRET} if method == "POST" else None
            answer = await asked.ask(method, f"{PATH}{path}", json=body)
            assert answer.is_success
            assert answer.headers["cache-control"] == "no-store"

    host.run(scenario)


def test_without_a_key_credentials_can_only_be_deleted(host: ApiHost) -> None:
    async def keep(asked: Served) -> None:
        await store(asked)

    async def scenario(asked: Served) -> None:
        for answer in (await store(asked), await asked.ask("GET", f"{PATH}/claude")):
            told = problem(answer, 503, "no-credentials-key")
            assert "./inv credentials.key" in told["hint"]
        assert (await asked.ask("GET", PATH)).json() == {"credentials": []}
        assert (await asked.ask("DELETE", PATH)).status_code == 204

    host.run(keep)
    host.run(scenario, credentials_key=None)


def test_credentials_are_locked_without_their_key_until_stored_again(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        await store(asked)
        in_database(host, "UPDATE credentials SET key_id = 'f00d'")
        told = problem(await asked.ask("GET", f"{PATH}/claude"), 409, "credentials-locked")
        assert "this host does not have their key, f00d" in told["detail"]
        assert "credentials-key" in told["hint"]
        assert len((await asked.ask("GET", PATH)).json()["credentials"]) == 1
        assert (await store(asked)).status_code == 200
        found = (await asked.ask("GET", f"{PATH}/claude")).json()
        assert found["credentials"] == SECRET

    host.run(scenario)


def test_credentials_moved_to_another_user_do_not_open(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        await store(asked)
        in_database(host, "UPDATE credentials SET user_id = ?", asked.users["other user"])
        answer = await asked.ask("GET", f"{PATH}/claude", "other user")
        problem(answer, 409, "credentials-locked")
        assert MARKER not in answer.text

    host.run(scenario)


@pytest.mark.parametrize("key", ["", "hidden", new_key()[:-4]], ids=["empty", "word", "cut"])
def test_malformed_key_prevents_the_start_without_showing_it(host: ApiHost, key: str) -> None:
    settings = host.settings.model_copy(update={"credentials_key": SecretStr(key)})
    with pytest.raises(ConfigError) as caught:
        create_app(settings, StillHypervisor(Path()))
    assert "secret credentials-key must be" in caught.value.message
    assert not key or key not in str(caught.value)


def test_examples_match_their_models() -> None:
    CredentialsAnswer.model_validate({**STORED_EXAMPLE, "credentials": EXAMPLE, "sealed": None})
    request = StoreRequest.model_validate({"provider": "claude", "credentials": EXAMPLE})
    assert str(EXAMPLE) not in repr(request)


def test_documented_refusals_match_the_answers(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        absent = (await asked.ask("GET", f"{PATH}/claude")).json()
        described = (await asked.ask("GET", "/openapi.json")).json()["paths"]
        responses = described[f"{PATH}/{{provider}}"]["get"]["responses"]
        assert {"401", "404", "409", "422", "503"} <= set(responses)
        assert {key: absent[key] for key in NONE_STORED} == NONE_STORED
        examples = [
            each["content"]["application/problem+json"]["example"]["type"]
            for status, each in responses.items()
            if status in ("404", "409", "503")
        ]
        assert examples == [NONE_STORED["type"], LOCKED["type"], NO_KEY["type"]]

    host.run(scenario)


def test_log_before_an_invalid_number_is_422(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        for number in (0, 2**31, 10**30):
            problem(await asked.ask("GET", f"{PATH}/log?before={number}"), 422)

    host.run(scenario)


@pytest.mark.usefixtures("logs_as_before")
def test_logs_do_not_contain_credentials_or_keys(
    host: ApiHost, capsys: pytest.CaptureFixture[str]
) -> None:
    """This holds for the debug logs of libraries, too."""

    async def scenario(asked: Served) -> None:
        configure_logs("debug", "json")
        for name in QUIET:
            logging.getLogger(name).setLevel(logging.DEBUG)
        session = await in_state(asked, "user", "oauth_pending")
        await store(asked, sessionId=session)
        await store(asked)
        await store(asked, **{MARKER: MARKER})
        await store(asked, credentials=MARKER)
        await asked.ask("GET", f"{PATH}/claude")
        await asked.ask("GET", PATH)
        in_database(host, "UPDATE credentials SET key_id = 'x'")
        await asked.ask("GET", f"{PATH}/claude")
        await asked.ask("DELETE", f"{PATH}/claude")
        in_database(host, "DROP TABLE credentials")
        assert (await store(asked)).status_code == 503  # the driver's error is not ours

    before = set(threading.enumerate())
    host.run(scenario)
    for thread in set(threading.enumerate()) - before:
        thread.join()  # of the database's driver, whose last words are asked for too
    said = capsys.readouterr().err
    assert said.count('"event": "request"') >= 8
    assert "INSERT INTO credentials" in said
    assert MARKER not in said
    assert host.settings.credentials_key is not None
    assert host.settings.credentials_key.get_secret_value() not in said

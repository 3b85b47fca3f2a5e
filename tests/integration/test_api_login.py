"""Logins over the API of a real controller process: codes, receipts, sealed and stored ones."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from polydev.client.credentials_key import new_key
from polydev.controller.logs import configure_logs
from polydev.processes import run as run_process
from tests.controllers import Controller, controller, run
from tests.fake_vms import FakeVm, OldImageVm
from tests.vms import FakeHost

DOCUMENT = Path(__file__).parents[2] / "docs/controller.md"
# As README.md has it.
FIELD = """
field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }
"""
LOGIN_URL = "https://claude.ai/oauth/authorize?code=true&state=Zm9v"
MARKER = "marker-of-a-secret-that-nobody-sees"
TOKENS = {"claudeAiOauth": {"accessToken": MARKER, "expires": 10**30, "note": "ü"}}
KEPT = "/api/auth/credentials"
SETTINGS: dict[str, Any] = {
    "credentials_key": SecretStr(new_key()),
    "vm_check": {"every_seconds": 0.05},
    "login": {"complete_after_seconds": 0.5},
}


def compact(credentials: object) -> bytes:
    return json.dumps(credentials, ensure_ascii=False, separators=(",", ":")).encode()


async def ask(asked: Controller, method: str, path: str, **words: Any) -> httpx.Response:
    return await asked.http.request(method, path, headers=asked.user, **words)


async def refusal(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    told: dict[str, Any] = answer.json()
    assert told["type"] == f"urn:polydev:error:{code}"
    return told


async def waiting(
    host: FakeHost, asked: Controller, kind: type[FakeVm] = FakeVm, **words: Any
) -> tuple[dict[str, Any], FakeVm]:
    """A session whose tool waits for its user."""
    host.hypervisor.next.append(kind)
    session = await asked.start(**words)
    async with asked.events(session) as events:
        await events.until(state="vm_created")
    await asked.get(session["links"]["oauthUrl"], 202)
    fake = await host.hypervisor.started(2)
    fake.login = {**fake.login, "status": "waiting", "url": LOGIN_URL}
    return session, fake


@pytest.mark.usefixtures("logs_as_before")
def test_login_code_leads_to_credentials_and_session_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def scenario(host: FakeHost) -> None:
        configure_logs("debug", "json")
        async with controller(host, **SETTINGS) as asked:
            session, fake = await waiting(host, asked)
            links = session["links"]
            assert (await asked.get(links["oauthUrl"]))["detail"] == ""
            older = links["oauthCode"].replace("/api/auth", "/api/vm/auth")
            for path in (links["oauthCode"], older):
                typed = await ask(asked, "POST", path, json={"code": f" {MARKER}#1\n"})
                assert (typed.status_code, typed.json()["status"]) == (202, "oauth_pending")
            assert fake.typed == 2 * [f"{MARKER}#1"]
            async with asked.events(session) as events:
                fake.log_in(TOKENS)
                told = await events.until(provider="claude", kept=True)
                assert told["sha256"] == hashlib.sha256(compact(TOKENS)).hexdigest()
            found = await asked.get(links["self"])
            receipt = found["credentialsReceipt"]
            assert (receipt["sha256"], receipt["recipient"]) == (told["sha256"], None)
            kept = (await ask(asked, "GET", f"{KEPT}/claude")).json()
            assert (kept["credentials"], kept["sessionId"]) == (TOKENS, session["id"])
            async with asked.events(session) as events:
                await events.until(state="completed")
            assert (await asked.released(session["vmId"]))["status"] == "ended"
            await refusal(
                await ask(asked, "POST", links["oauthCode"], json={"code": "x"}),
                410,
                "session-expired",
            )
            log = (await ask(asked, "GET", f"{KEPT}/log", params={"limit": 1})).json()
            assert [each["kind"] for each in log["events"]] == ["read"]
            (older_event,) = (
                await ask(asked, "GET", f"{KEPT}/log", params={"before": log["next"]})
            ).json()["events"]
            assert (older_event["kind"], older_event["by"]) == ("handed_over", "controller")

    run(tmp_path, scenario)
    said = capsys.readouterr().err
    assert "credentials_handed_over" in said
    assert MARKER not in said


class PromptVm(FakeVm):
    """A VM whose tool waits for its user as soon as it was started."""

    def login_asked(self, method: str, provider: str) -> tuple[int, object]:
        status, _ = super().login_asked(method, provider)
        if self.login["status"] == "starting":
            self.login = {**self.login, "status": "waiting", "url": LOGIN_URL}
        return status, self.login


def test_documented_login_commands_lead_to_credentials(tmp_path: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", DOCUMENT.read_text(), re.M | re.S)
    (lines,) = [each for each in blocks if "/oauth-url" in each]

    async def scenario(host: FakeHost) -> None:
        # The user logs in before the next command has begun; the session must last for it.
        lasts = {"complete_after_seconds": 3600}
        async with controller(host, **{**SETTINGS, "login": lasts}) as asked:
            host.hypervisor.next.append(PromptVm)
            given = {
                "url": str(asked.http.base_url).rstrip("/"),
                "user": asked.user_id,
                "auth": f"Authorization: {asked.user['Authorization']}",
            }
            words = ["sh", "-euc", FIELD + lines]
            shell = asyncio.create_task(
                asyncio.to_thread(run_process, words, cwd=tmp_path, env=given)
            )
            fake = await host.hypervisor.started(2)
            (session,) = (await asked.get("/api/auth/sessions"))["sessions"]
            async with asked.events(session) as events:
                await events.until(status="waiting")
            fake.log_in(TOKENS)
            said = (await shell).stdout
        assert f"{given['url']}/session/{session['id']}?ticket=" in said
        assert '"kept": true' in said

    run(tmp_path, scenario)
    assert json.loads((tmp_path / "answer.json").read_text())["credentials"] == TOKENS


def test_untypable_login_codes_are_refused_and_not_echoed(tmp_path: Path) -> None:
    async def scenario(host: FakeHost) -> None:
        async with controller(host, **SETTINGS) as asked:
            session, fake = await waiting(host, asked)
            path = session["links"]["oauthCode"]
            for body in (
                {"code": f"{MARKER}\x03"},
                {"code": f"{MARKER}\n{MARKER}"},
                {"code": "  "},
                {"code": MARKER * 200},
                {"code": [MARKER]},
                {"code": "x", MARKER: MARKER},
                {MARKER: MARKER},
                MARKER,
            ):
                answer = await ask(asked, "POST", path, json=body)
                assert answer.status_code == 422, answer.text
                assert "marker" not in answer.text
            assert fake.typed == []
            fake.login = {**fake.login, "status": "starting"}
            answer = await ask(asked, "POST", path, json={"code": "x"})
            told = await refusal(answer, 409, "login-refused")
            assert told["detail"] == "no login is waiting for a code"
            assert "oauth-url" in told["hint"]
            fake.mute = True

    run(tmp_path, scenario)


def test_login_code_for_older_image_is_refused_with_hint(tmp_path: Path) -> None:
    async def scenario(host: FakeHost) -> None:
        async with controller(host, **SETTINGS) as asked:
            for record in host.root.glob("store/images/*/record.json"):
                record.unlink()
            session, fake = await waiting(host, asked, OldImageVm)
            path = session["links"]["oauthCode"]
            answer = await ask(asked, "POST", path, json={"code": "x"})
            assert "newer image" in (await refusal(answer, 502, "agent-protocol"))["hint"]
            async with asked.events(session) as events:
                fake.log_in(TOKENS)
                assert "newer image" in (await events.until(kept=False))["because"]
            found = await asked.get(session["links"]["self"])
            assert "newer image" in found["loginDetail"]
            assert (found["credentialsReceipt"], found["completesAt"]) == (None, None)
            assert (await asked.get(session["links"]["oauthUrl"]))["status"] == "done"

    run(tmp_path, scenario)


def test_credentials_sealed_to_recipient_open_with_age(tmp_path: Path) -> None:
    """age, the usual tool, opens them."""
    key = tmp_path / "key.txt"
    run_process(["age-keygen", "-o", key])
    recipient = run_process(["age-keygen", "-y", key]).stdout.strip()

    async def scenario(host: FakeHost) -> None:
        async with controller(host, **{**SETTINGS, "credentials_key": None}) as asked:
            body = {"userId": asked.user_id, "provider": "claude"}
            for wrong in (recipient[:-1], f"{recipient}\n", "ssh-ed25519 AAAA", f"{MARKER}", ""):
                answer = await ask(
                    asked, "POST", "/api/auth/start", json={**body, "credentialsRecipient": wrong}
                )
                assert answer.status_code == 422
                assert [each["pointer"] for each in answer.json()["errors"]] == [
                    "body/credentialsRecipient"
                ]
                assert "marker" not in answer.text
            wish = {**body, "useStoredCredentials": True}
            answer = await ask(asked, "POST", "/api/auth/start", json=wish)
            await refusal(answer, 503, "no-credentials-key")
            session, fake = await waiting(host, asked, credentialsRecipient=recipient)
            async with asked.events(session) as events:
                fake.log_in(TOKENS)
                assert (await events.until(kept=True))["recipient"] == recipient
            kept = (await ask(asked, "GET", f"{KEPT}/claude")).json()
            assert (kept["credentials"], kept["recipient"]) == (None, recipient)
            sealed = tmp_path / "sealed.age"
            sealed.write_text(kept["sealed"])
            opened = run_process(["age", "-d", "-i", key, sealed]).stdout
            assert opened.encode() == compact(TOKENS)
            listed = (await ask(asked, "GET", KEPT)).json()["credentials"]
            assert [each["recipient"] for each in listed] == [recipient]

    run(tmp_path, scenario)


def test_session_with_stored_credentials_blocks_others_until_it_ends(tmp_path: Path) -> None:
    async def scenario(host: FakeHost) -> None:
        async with controller(host, **SETTINGS) as asked:
            body = {"userId": asked.user_id, "provider": "claude", "useStoredCredentials": True}
            await refusal(
                await ask(asked, "POST", "/api/auth/start", json=body),
                404,
                "credentials-not-found",
            )
            await ask(
                asked, "POST", f"{KEPT}/store", json={"provider": "claude", "credentials": TOKENS}
            )
            answer = await asked.http.post("/api/auth/start", json=body, headers=asked.operator)
            await refusal(answer, 403, "not-allowed")
            session = await asked.start(useStoredCredentials=True)
            async with asked.events(session) as events:
                await events.until(state="authenticated")
            fake = await host.hypervisor.started(2)
            assert fake.credentials == TOKENS
            found = await asked.get(session["links"]["self"])
            assert (found["storedCredentials"], found["completesAt"]) == ("injected", None)
            assert (await asked.get(session["links"]["oauthUrl"]))["status"] == "done"
            again = await ask(asked, "POST", session["links"]["oauthUrl"])
            assert "another session" in (await refusal(again, 409, "session"))["hint"]
            listed = (await ask(asked, "GET", KEPT)).json()["credentials"]
            assert [each["heldBy"] for each in listed] == [session["id"]]
            for answer in (
                await ask(asked, "GET", f"{KEPT}/claude"),
                await ask(asked, "POST", "/api/auth/start", json=body),
            ):
                told = await refusal(answer, 409, "credentials-in-use")
                assert session["id"] in told["detail"]

    run(tmp_path, scenario)

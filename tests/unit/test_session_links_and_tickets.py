"""Tickets and page keys: valid once, for one session, with fewer rights for spectators."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import sqlalchemy as sa

from polydev.controller.api.session_links_and_tickets import VIEWER_SECONDS
from polydev.controller.entities import Caller, now
from polydev.controller.settings import ControllerSettings, RateLimits, SessionLimits
from polydev.controller.store import sign_ins, tables
from tests.api import ApiHost, Served, api_host, problem
from tests.pages import browser

NEVER = "CxEgbaMXQm2p5Xo4b0F2d0VJkq3b1sM7c9aZr8nT1yU"


@pytest.fixture
def host(migrated: Path, tmp_path: Path) -> ApiHost:
    return api_host(
        migrated, tmp_path, slots=(2, 3, 4, 5), session=SessionLimits(per_user=3, max_seconds=900)
    )


async def ticket(
    asked: Served, session: dict[str, Any], caller: str = "user", **body: Any
) -> dict[str, Any]:
    path = f"/api/auth/session/{session['id']}/tickets"
    answer = await asked.ask("POST", path, caller, json={"purpose": "page", **body})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def key(asked: Served, made: dict[str, Any]) -> dict[str, Any]:
    answer = await asked.client.post("/api/auth/redeem", json={"ticket": made["ticket"]})
    assert answer.status_code == 200, answer.text
    redeemed: dict[str, Any] = answer.json()
    return redeemed


def test_page_ticket_is_redeemed_once(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        session = await asked.start()
        made = await ticket(asked, session)
        url = urlsplit(made["url"])
        assert url.path == session["novncURL"] == f"/session/{session['id']}"
        assert parse_qs(url.query) == {"ticket": [made["ticket"]]}
        redeemed = await key(asked, made)
        assert redeemed["sessionId"] == session["id"]
        assert redeemed["viewOnly"] is False
        again = await asked.client.post("/api/auth/redeem", json={"ticket": made["ticket"]})
        told = problem(again, 401, "not-authenticated")
        assert "used before" in told["detail"]

    host.run(scenario)


@pytest.mark.parametrize("body", [{"ticket": NEVER}, {"ticket": "x"}])
def test_unknown_ticket_is_refused(host: ApiHost, body: dict[str, str]) -> None:
    async def scenario(asked: Served) -> None:
        problem(await asked.client.post("/api/auth/redeem", json=body), 401, "not-authenticated")

    host.run(scenario)


def test_tickets_of_another_purpose_or_expired_are_refused(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        session = await asked.start()
        viewer = await ticket(asked, session, purpose="viewer")
        assert viewer["url"].startswith(f"{session['links']['novnc']}?ticket=")
        link = (await asked.ask("POST", "/api/auth/sign-in-link")).json()
        code = link["url"].partition("code=")[2]
        for plain in (viewer["ticket"], code):
            answer = await asked.client.post("/api/auth/redeem", json={"ticket": plain})
            problem(answer, 401, "not-authenticated")
        made = await ticket(asked, session, expiresInSeconds=600)
        until = datetime.fromisoformat(made["expiresAt"])
        late = asked.services.tickets._clock() + timedelta(seconds=601)
        assert until < late
        asked.services.tickets._clock = lambda: late
        assert await asked.services.tickets.redeem(made["ticket"], "page") is None

    host.run(scenario)


def test_page_key_permits_only_its_session(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        session, other = await asked.start(), await asked.start()
        redeemed = await key(asked, await ticket(asked, session))
        headers = {"Authorization": f"Bearer {redeemed['key']}"}
        own, vm = session["links"]["self"], session["vmId"]

        async def ask(method: str, path: str, **words: Any) -> int:
            answer = await asked.client.request(method, path, headers=headers, **words)
            return answer.status_code

        assert await ask("GET", own) == 200
        assert await ask("POST", f"{own}/heartbeat") == 200
        assert await ask("POST", f"{own}/tickets", json={}) == 201
        start = {"userId": asked.users["user"], "provider": "claude"}
        for method, path in (
            ("GET", other["links"]["self"]),
            ("GET", f"{own}x"),
            ("GET", f"{own}/../{other['id']}"),
            ("GET", f"{own}%2F..%2F{other['id']}"),
            ("GET", own.upper()),
            ("GET", "/api/auth/sessions"),
            ("GET", f"/api/vm/{vm}"),
            ("GET", "/api/auth/credentials"),
            ("GET", "/openapi.json"),
            ("GET", f"/session/{session['id']}"),
            ("POST", "/logout"),
            ("POST", "/api/auth/start"),
            ("POST", "/api/auth/sign-in-link"),
        ):
            assert await ask(method, path, json=start) in (403, 404), (method, path)
        assert await ask("DELETE", own) == 200

    host.run(scenario)


def test_spectator_key_is_read_only(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        session = await asked.start()
        made = await ticket(asked, session, viewOnly=True)
        assert made["viewOnly"] is True
        redeemed = await key(asked, made)
        assert redeemed["viewOnly"] is True
        headers = {"Authorization": f"Bearer {redeemed['key']}"}
        own = session["links"]["self"]
        assert (await asked.client.get(own, headers=headers)).status_code == 200
        for method, path in (
            ("DELETE", own),
            ("POST", f"{own}/heartbeat"),
            ("GET", f"{own}/oauth-url"),
            ("GET", f"{own}/vm"),
        ):
            answer = await asked.client.request(method, path, headers=headers)
            problem(answer, 403, "not-allowed")
        # A spectator cannot get a viewer's ticket with more rights.
        body = {"purpose": "viewer", "viewOnly": False}
        answer = await asked.client.post(f"{own}/tickets", json=body, headers=headers)
        assert answer.json()["viewOnly"] is True
        caller = await asked.services.tickets.redeem(answer.json()["ticket"], "viewer")
        assert caller is not None
        assert (caller.view_only, caller.session_id) == (True, session["id"])

    host.run(scenario)


def test_spectator_gets_no_internals_and_uses_no_rate_limit(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        session = await asked.start()
        redeemed = await key(asked, await ticket(asked, session, viewOnly=True))
        headers = {"Authorization": f"Bearer {redeemed['key']}"}
        own = session["links"]["self"]
        seen = (await asked.client.get(own, headers=headers)).json()
        assert session["browserIP"] is not None
        assert (seen["browserIP"], seen["boot"]["receipt"], seen["warnings"]) == (None, None, [])
        for kind in ("login", "credentials", "unhealthy"):
            await asked.services.sessions.add_news(session["id"], kind, {})
        await asked.ask("DELETE", own)
        events = await asked.client.get(f"{own}/events", headers=headers)
        kinds = [line for line in events.text.splitlines() if line.startswith("event: ")]
        assert kinds == ["event: state", "event: unhealthy", "event: state"]
        while (await asked.client.get(own, headers=headers)).status_code == 200:
            pass
        assert (await asked.ask("GET", own)).status_code == 200

    host.run(scenario, rate=RateLimits(requests_per_second=0.01, burst=9))


def test_guesses_at_tickets_are_rate_limited(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        statuses = []
        headers = {"X-Forwarded-For": "192.0.2.7"}
        for _ in range(3):
            answer = await asked.client.post(
                "/api/auth/redeem", json={"ticket": NEVER}, headers=headers
            )
            statuses.append(answer.status_code)
        assert statuses == [401, 401, 429]

    proxies = ControllerSettings(trusted_proxies=("127.0.0.1",)).trusted_proxies  # type: ignore[arg-type]
    rate = RateLimits(failures_per_minute=0.01, failures_burst=2)
    host.run(scenario, trusted_proxies=proxies, rate=rate)


def test_viewer_tickets_expire_after_seconds(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        session, at = await asked.start(), now()
        asked.services.tickets._clock = lambda: at
        made = await ticket(asked, session, purpose="viewer", expiresInSeconds=600)
        expires_at = datetime.fromisoformat(made["expiresAt"])
        assert expires_at == at + timedelta(seconds=VIEWER_SECONDS)

    host.run(scenario)


def test_redeemed_tickets_count_for_the_rate_limit(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        session = await asked.start()
        caller = Caller(asked.users["other user"], "user", "token")
        statuses = []
        for _ in range(3):
            made, _ends = await asked.services.tickets.create("page", caller, 60, session["id"])
            answer = await asked.client.post("/api/auth/redeem", json={"ticket": made})
            statuses.append(answer.status_code)
        assert statuses == [200, 200, 429]

    host.run(scenario, rate=RateLimits(requests_per_second=0.001, burst=2))


def test_page_key_ends_when_its_browser_signs_out(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        session = await asked.start()
        own = session["links"]["self"]
        signed_in = await browser(asked, "user")
        made = await signed_in.ask("POST", f"{own}/tickets", json={"purpose": "page"})
        redeemed = await key(asked, made.json())
        headers = {"Authorization": f"Bearer {redeemed['key']}"}
        assert (await asked.client.get(own, headers=headers)).status_code == 200
        await signed_in.ask("POST", "/logout")
        problem(await asked.client.get(own, headers=headers), 401, "not-authenticated")

    host.run(scenario)


def test_page_key_cannot_sign_a_browser_in(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        redeemed = await key(asked, await ticket(asked, await asked.start()))
        answer = await asked.client.post("/login", data={"token": redeemed["key"]})
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers

    host.run(scenario)


def test_cookies_and_page_keys_are_not_interchangeable(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        signed_in = await browser(asked, "user")
        answer = await asked.client.get(
            "/api/auth/sessions", headers={"Authorization": f"Bearer {signed_in.cookie}"}
        )
        problem(answer, 401, "not-authenticated")
        redeemed = await key(asked, await ticket(asked, await asked.start()))
        signed_in.cookie = redeemed["key"]
        assert (await signed_in.ask("GET", "/api/auth/sessions")).status_code == 401

    host.run(scenario)


def test_tickets_and_keys_end_with_their_revoked_token(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        session = await asked.start()
        unused = await ticket(asked, session, "operator")
        redeemed = await key(asked, await ticket(asked, session, "operator"))
        tokens = await asked.services.tokens.list(asked.users["operator"])
        await asked.services.tokens.revoke(tokens[0].id)
        answer = await asked.client.post("/api/auth/redeem", json={"ticket": unused["ticket"]})
        problem(answer, 401, "not-authenticated")
        headers = {"Authorization": f"Bearer {redeemed['key']}"}
        answer = await asked.client.get(session["links"]["self"], headers=headers)
        problem(answer, 401, "not-authenticated")

    host.run(scenario)


def test_ticket_ends_with_the_jwt_that_it_was_made_with(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        tickets, session = asked.services.tickets, await asked.start()
        at = tickets._clock()
        ends = at + timedelta(seconds=10)
        caller = Caller(asked.users["user"], "user", "jwt", ends)
        made = [(await tickets.create("viewer", caller, 60, session["id"]))[0] for _ in range(2)]
        tickets._clock = lambda: at + timedelta(seconds=9)
        redeemed = await tickets.redeem(made[0], "viewer")
        assert redeemed is not None
        assert redeemed.expires_at == ends
        tickets._clock = lambda: ends
        assert await tickets.redeem(made[1], "viewer") is None

    host.run(scenario)


def test_operator_ticket_works_for_sessions_of_others(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        session = await asked.start()
        redeemed = await key(asked, await ticket(asked, session, "operator"))
        headers = {"Authorization": f"Bearer {redeemed['key']}"}
        answer = await asked.client.get(session["links"]["self"], headers=headers)
        assert answer.status_code == 200
        await asked.services.users.set_role(asked.users["operator"], "user")
        answer = await asked.client.get(session["links"]["self"], headers=headers)
        problem(answer, 403, "not-allowed")

    host.run(scenario)


def test_ended_session_gives_no_tickets(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        session = await asked.start()
        made = await ticket(asked, session)
        await asked.ask("DELETE", session["links"]["self"])
        path = f"{session['links']['self']}/tickets"
        problem(await asked.ask("POST", path, json={}), 410, "session-expired")
        answer = await asked.client.post("/api/auth/redeem", json={"ticket": made["ticket"]})
        problem(answer, 410, "session-expired")

    host.run(scenario)


@pytest.mark.parametrize(
    "body", [{"purpose": "sign-in"}, {"expiresInSeconds": 0}, {"expiresInSeconds": 1e9}, {"x": 1}]
)
def test_malformed_ticket_requests_are_refused(host: ApiHost, body: dict[str, Any]) -> None:
    async def scenario(asked: Served) -> None:
        session = await asked.start()
        path = f"{session['links']['self']}/tickets"
        problem(await asked.ask("POST", path, json=body), 422)

    host.run(scenario)


def test_only_hashes_of_secrets_are_stored(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        signed_in = await browser(asked, "user")
        made = await ticket(asked, await asked.start())
        redeemed = await key(asked, await ticket(asked, await asked.start()))
        kept = host.database.read_bytes()
        for side in host.database.parent.glob(f"{host.database.name}-*"):
            kept += side.read_bytes()
        for secret in (signed_in.cookie, made["ticket"], redeemed["key"]):
            assert str(secret).encode() not in kept

    host.run(scenario)


def test_expired_tickets_and_keys_are_deleted(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        session = await asked.start()
        services = asked.services
        await ticket(asked, session)
        await key(asked, await ticket(asked, session))
        late = services.tickets._clock() + timedelta(days=1)
        services.tickets._clock = services.sign_ins._clock = lambda: late
        caller = Caller(asked.users["user"], "user", "token")
        await services.tickets.create("viewer", caller, 60, session["id"])
        await services.sign_ins.create(caller, 60)
        for table in (tables.tickets, tables.sign_ins):
            async with services.database.reading() as connection:
                found = await connection.execute(sa.select(table.c.expires_at))
                assert list(found.scalars()) == [late + timedelta(seconds=60)]

    host.run(scenario)


def test_only_the_newest_tickets_of_a_user_are_kept(
    host: ApiHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sign_ins, "MOST_PER_USER", 2)

    async def scenario(asked: Served) -> None:
        session = await asked.start()
        first, *newer = [await ticket(asked, session) for _ in range(3)]
        refused = await asked.client.post("/api/auth/redeem", json={"ticket": first["ticket"]})
        problem(refused, 401, "not-authenticated")
        # Tickets of other users do not count.
        others = await asked.start("other user")
        await ticket(asked, others, "other user")
        for made in newer:
            await key(asked, made)

    host.run(scenario)


def test_only_the_newest_keys_of_a_user_are_kept(
    host: ApiHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sign_ins, "MOST_PER_USER", 2)

    async def scenario(asked: Served) -> None:
        session = await asked.start()
        path = f"/api/auth/session/{session['id']}"
        made = [await key(asked, await ticket(asked, session)) for _ in range(3)]
        answers = [
            (await asked.client.get(path, headers={"Authorization": f"Bearer {each['key']}"}))
            for each in made
        ]
        assert [each.status_code for each in answers] == [401, 200, 200]

    host.run(scenario)

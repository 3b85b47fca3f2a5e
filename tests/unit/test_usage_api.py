"""Usage over the API: who may see it, and the answer to a user whose quota is used up."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from polydev.controller.auth.cookies import CSRF_HEADER
from polydev.controller.check_config import problems
from polydev.controller.entities import now
from polydev.controller.settings import Quotas
from polydev.controller.store.usage import add_use
from polydev.controller.usage_accounting import Use, day_of
from tests.api import ApiHost, Served, api_host, problem
from tests.pages import browser

UNKNOWN = "5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01"
HOUR = 3600
QUOTAS = Quotas(vm_hours_per_day=2)


@pytest.fixture
def host(migrated: Path, tmp_path: Path) -> ApiHost:
    return api_host(migrated, tmp_path, slots=(2, 3, 4))


async def used(asked: Served, caller: str, days_ago: int = 0, **figures: Any) -> None:
    day = day_of(now()) - timedelta(days=days_ago)
    async with asked.services.database.writing() as connection:
        await add_use(connection, {(asked.users[caller], day): Use(**figures)})


async def start(asked: Served, caller: str = "user") -> Any:
    body = {"userId": asked.users[caller], "provider": "claude"}
    return await asked.ask("POST", "/api/auth/start", caller, json=body)


def test_users_see_their_own_usage(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        await used(asked, "user", vm_seconds=HOUR, cpu_seconds=5.04, received_bytes=7)
        await used(asked, "user", 40, vm_seconds=10)
        await used(asked, "other user", vm_seconds=99)
        told = (await asked.ask("GET", "/api/auth/usage")).json()
        today = {
            "vmSeconds": HOUR,
            "cpuSeconds": 5.0,
            "receivedBytes": 7,
            "sentBytes": 0,
            "sessions": 0,
        }
        assert told["today"] == told["month"] == told["total"] == today
        assert told["days"] == [{**today, "day": day_of(now()).isoformat()}]
        (quota,) = told["quotas"]
        free_at = quota.pop("freeAt")
        assert quota == {"quota": "vm_hours_per_day", "used": 1.0, "limit": 2.0, "left": 1.0}
        assert free_at == f"{(day_of(now()) + timedelta(days=1)).isoformat()}T00:00:00Z"
        longer = (await asked.ask("GET", "/api/auth/usage?days=41")).json()
        assert longer["total"]["vmSeconds"] == HOUR + 10
        assert len(longer["days"]) == 2

    host.run(scenario, quotas=QUOTAS)


def test_quota_bar_shows_when_it_resets(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        await used(asked, "user", vm_seconds=HOUR)
        page = (await (await browser(asked, "operator")).ask("GET", "/admin/users")).text
        tomorrow = (day_of(now()) + timedelta(days=1)).isoformat()
        assert f'title="Resets at {tomorrow} 00:00 UTC">1.0 of 2 VM h today' in page
        assert "VM, 30 days" in page

    host.run(scenario, quotas=QUOTAS)


def test_operators_see_usage_by_user_and_day(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        await used(asked, "user", vm_seconds=10)
        await used(asked, "other user", 1, vm_seconds=20, sent_bytes=5)
        await used(asked, "other user", vm_seconds=30)
        await used(asked, "other user", 99, vm_seconds=1000)
        told = (await asked.ask("GET", "/api/admin/usage", "operator")).json()
        seconds = [(each["userId"], each["total"]["vmSeconds"]) for each in told["users"]]
        assert seconds[:2] == [(asked.users["other user"], 50), (asked.users["user"], 10)]
        assert {each for _, each in seconds[2:]} == {0}
        assert [each["vmSeconds"] for each in told["days"]] == [20, 40]
        assert told["total"] == {
            "vmSeconds": 60,
            "cpuSeconds": 0,
            "receivedBytes": 0,
            "sentBytes": 5,
            "sessions": 0,
        }
        assert told["since"] == (day_of(now()) - timedelta(days=29)).isoformat()
        query = f"/api/admin/usage?days=1&user={asked.users['other user']}"
        one = (await asked.ask("GET", query, "operator")).json()
        assert [each["total"]["vmSeconds"] for each in one["users"]] == [30]
        answer = await asked.ask("GET", f"/api/admin/usage?user={UNKNOWN}", "admin")
        problem(answer, 404, "user-not-found")
        for days in (0, 401, "x"):
            answer = await asked.ask("GET", f"/api/admin/usage?days={days}", "admin")
            problem(answer, 422)

    host.run(scenario)


def test_start_beyond_a_quota_is_refused_with_its_reset_time(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        await used(asked, "user", vm_seconds=2.25 * HOUR)
        answer = await start(asked)
        told = problem(answer, 429, "quota-exceeded")
        assert told["detail"] == "quota exceeded: 2.2 of 2 VM hours of today used"
        assert (told["quota"], told["used"], told["limit"]) == ("vm_hours_per_day", 2.25, 2)
        tomorrow = day_of(now()) + timedelta(days=1)
        assert told["freeAt"] == f"{tomorrow.isoformat()}T00:00:00Z"
        assert "quotas.vm_hours_per_day" in told["hint"]
        assert 0 < int(answer.headers["retry-after"]) <= 24 * HOUR
        assert (await start(asked, "other user")).status_code == 201
        theirs = {"userId": asked.users["user"], "provider": "claude"}
        by_operator = await asked.ask("POST", "/api/auth/start", "operator", json=theirs)
        problem(by_operator, 429, "quota-exceeded")

    host.run(scenario, quotas=QUOTAS)


def test_running_session_continues_with_a_quota_warning(host: ApiHost) -> None:
    async def warnings(asked: Served, path: str) -> Any:
        return (await asked.ask("GET", path)).json()["warnings"]

    async def scenario(asked: Served) -> None:
        made = (await start(asked)).json()
        path = f"/api/auth/session/{made['id']}"
        assert made["warnings"] == await warnings(asked, path) == []
        await used(asked, "user", vm_seconds=1.85 * HOUR)
        (near,) = await warnings(asked, path)
        assert near["message"].startswith("1.9 of 2 VM hours of today used: the quota resets")
        assert (near["kind"], near["quota"]["left"]) == ("quota", 0.15)
        await used(asked, "user", vm_seconds=0.2 * HOUR)
        (over,) = await warnings(asked, path)
        assert "no further session can start before" in over["message"]
        assert over["message"].endswith("; this one continues")
        beat = (await asked.ask("POST", f"{path}/heartbeat")).json()
        assert (beat["status"], beat["warnings"]) == ("vm_creating", [over])
        (listed,) = (await asked.ask("GET", "/api/auth/sessions")).json()["sessions"]
        assert listed["warnings"] == [over]
        ended = (await asked.ask("DELETE", path)).json()
        assert (ended["status"], ended["warnings"]) == ("terminated", [])

    host.run(scenario, quotas=QUOTAS)


@pytest.mark.parametrize(
    ("given", "key", "words"),
    [
        ({"vm_hours_per_day": -1}, "quotas.vm_hours_per_day", "or more"),
        ({"vm_hours": 1}, "quotas.vm_hours", "there is no such key"),
        ({"by_role": {"boss": {}}}, "quotas.by_role.boss", "must be 'admin', 'operator' or 'user'"),
        ({"by_user": {"Ada": {}}}, "quotas.by_user.Ada", "must be a UUID"),
        (
            {"by_user": {UNKNOWN: {"vm_hour_per_day": 1}}},
            f"quotas.by_user.{UNKNOWN}.vm_hour_per_day",
            "did you mean vm_hours_per_day?",
        ),
    ],
)
def test_invalid_quota_is_refused_by_the_plan(given: Any, key: str, words: str) -> None:
    document = {"config": {}, "given": {"quotas": given}, "secrets": {}}
    (found,) = problems(document)
    assert found["key"] == f"controller.{key}"
    assert words in found["message"]


def test_valid_quotas_are_accepted() -> None:
    quotas = {
        "vm_hours_per_day": 8,
        "by_role": {"admin": {"vm_hours_per_day": 0}},
        "by_user": {UNKNOWN: {"traffic_gib_per_day": 2.5}},
    }
    assert problems({"config": {}, "given": {"quotas": quotas}, "secrets": {}}) == []


def test_admin_can_revoke_tokens_of_others(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        token, plain = await asked.services.tokens.create(asked.users["user"], "laptop")
        path = f"/api/admin/tokens/{token.id}"
        problem(await asked.ask("DELETE", path, "operator"), 403, "not-allowed")
        told = (await asked.ask("DELETE", path, "admin")).json()
        assert (told["id"], told["name"]) == (token.id, "laptop")
        assert told["revokedAt"] is not None
        assert plain not in str(told)
        assert await asked.services.tokens.caller_of(plain) is None
        again = (await asked.ask("DELETE", path, "admin")).json()
        assert again == told
        answer = await asked.ask("DELETE", f"/api/admin/tokens/{UNKNOWN}", "admin")
        problem(answer, 404, "token-not-found")

    host.run(scenario)


def test_ending_sessions_and_tokens_needs_csrf_token_and_origin(host: ApiHost) -> None:
    """Requests from other sites or without this sign-in's CSRF token are refused."""

    async def scenario(asked: Served) -> None:
        token, _ = await asked.services.tokens.create(asked.users["user"], "laptop")
        session = (await start(asked)).json()["id"]
        admin = await browser(asked, "admin")
        for path in (f"/api/admin/tokens/{token.id}", f"/api/auth/session/{session}"):
            for headers in (
                {CSRF_HEADER: ""},
                {"Origin": "https://evil.example"},
                {"Sec-Fetch-Site": "cross-site"},
            ):
                problem(await admin.ask("DELETE", path, headers), 403, "not-allowed")
        assert (await asked.services.sessions.get(session)).is_live
        for path in (f"/api/admin/tokens/{token.id}", f"/api/auth/session/{session}"):
            assert (await admin.ask("DELETE", path)).status_code == 200
        assert not (await asked.services.sessions.get(session)).is_live

    host.run(scenario)

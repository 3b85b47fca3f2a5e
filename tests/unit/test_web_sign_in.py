"""Sign-in of browsers by a token, a JWT or a link, and what their cookies permit."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from polydev.controller.auth.cookies import CSRF_HEADER, PLAIN_NAME, SECURE_NAME, csrf_token
from polydev.controller.entities import Caller, now
from polydev.controller.settings import ControllerSettings, RateLimits, WebSettings
from polydev.controller.web.sign_in import local_path
from tests.api import IMAGE_DIGEST, ApiHost, Served, api_host, problem, token_of
from tests.pages import BROWSER, PAGES, VIEWERS, Browser, browser

FOREIGN = "https://evil.example"
OWN = "http://controller.test"
# After the burst no attempt is allowed again, however slowly a test goes on.
NO_MORE_ATTEMPTS = RateLimits(failures_per_minute=0.01)


@pytest.fixture
def host(migrated: Path, tmp_path: Path) -> ApiHost:
    return api_host(migrated, tmp_path, slots=(2, 3, 4))


@pytest.mark.parametrize("route", PAGES, ids=" ".join)
def test_permissions_of_each_page(host: ApiHost, route: tuple[str, str]) -> None:
    expected = dict(zip(VIEWERS, PAGES[route], strict=True))

    async def scenario(asked: Served) -> None:
        session = await asked.start()
        pages = asked.app.state.pages
        values = {"session_id": session["id"], "vm_id": session["vmId"], "digest": IMAGE_DIGEST}
        values |= {"user_id": asked.users["user"], "deployment_id": "20261121_101500-abcd"}
        if "/static/" in route[1]:
            values |= {"digest": pages.assets.digest, "name:path": "requests_and_notices.js"}
        path = route[1].replace("{name:path}", values.pop("name:path", "")).format(**values)
        answered = {}
        for caller in VIEWERS:
            answer = await (await browser(asked, caller)).ask(route[0], path)
            answered[caller] = answer.status_code
        assert answered == expected

    host.run(scenario)


@pytest.mark.parametrize("caller", ["user", "operator"])
def test_token_or_jwt_becomes_an_http_only_cookie(host: ApiHost, caller: str) -> None:
    async def scenario(asked: Served) -> None:
        form = {"token": f" {asked.tokens[caller]} ", "next": "/login?here"}
        answer = await Browser(asked).ask("POST", "/login", data=form)
        assert (answer.status_code, answer.headers["location"]) == (303, "/login?here")
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith(f"{PLAIN_NAME}=")
        assert {"HttpOnly", "Path=/", "SameSite=strict"} <= set(cookie.split("; "))
        assert "Secure" not in cookie
        shown = await (await browser(asked, caller)).ask("GET", "/api/auth/sessions")
        assert shown.status_code == 200

    host.run(scenario)


def test_cookie_is_secure_with_a_tls_public_url(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        form = {"token": asked.tokens["user"]}
        answer = await asked.client.post("/login", data=form, headers=BROWSER)
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith(f"{SECURE_NAME}=")
        assert "Secure" in cookie.split("; ")
        secret = cookie.partition("=")[2].partition(";")[0]
        for name, status in ((SECURE_NAME, 200), (PLAIN_NAME, 401)):
            asked.client.cookies.clear()
            seen = {"Cookie": f"{name}={secret}"}
            answer = await asked.client.get("/api/auth/sessions", headers=seen)
            assert answer.status_code == status

    host.run(scenario, web=WebSettings(public_url="https://vms.example.com"))


@pytest.mark.parametrize(
    ("told", "trusted", "is_secure"),
    [("https", ("127.0.0.1",), True), ("https", (), False), ("http", ("127.0.0.1",), False)],
)
def test_forwarded_proto_counts_from_trusted_proxies_only(
    host: ApiHost, told: str, trusted: tuple[str, ...], is_secure: bool
) -> None:
    async def scenario(asked: Served) -> None:
        headers = {**BROWSER, "X-Forwarded-Proto": told}
        form = {"token": asked.tokens["user"]}
        answer = await asked.client.post("/login", data=form, headers=headers)
        assert answer.headers["set-cookie"].startswith(SECURE_NAME) is is_secure

    proxies = ControllerSettings(trusted_proxies=trusted).trusted_proxies  # type: ignore[arg-type]
    host.run(scenario, trusted_proxies=proxies)


@pytest.mark.parametrize(
    "token", ["", "pdt_wrong", "x" * 9000, "pdk_wrong", "<script>alert(1)</script>"]
)
def test_wrong_token_shows_an_error_without_quoting_it(host: ApiHost, token: str) -> None:
    async def scenario(asked: Served) -> None:
        form = {"token": token, "next": '"><script>alert(1)</script>'}
        answer = await Browser(asked).ask("POST", "/login", data=form)
        assert answer.status_code == 401
        assert 'role="alert"' in answer.text
        assert "Authorization: Bearer" not in answer.text
        assert "set-cookie" not in answer.headers
        assert "<script>alert" not in answer.text
        assert not token or token not in answer.text

    host.run(scenario)


def test_sign_in_attempts_are_rate_limited(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        statuses = []
        for _ in range(asked.services.settings.rate.failures_burst + 1):
            headers = {**BROWSER, "X-Forwarded-For": "192.0.2.7"}
            form = {"token": "pdt_guess"}
            answer = await asked.client.post("/login", data=form, headers=headers)
            statuses.append(answer.status_code)
        assert statuses[0] == 401
        assert statuses[-1] == 429

    proxies = ControllerSettings(trusted_proxies=("127.0.0.1",)).trusted_proxies  # type: ignore[arg-type]
    host.run(scenario, trusted_proxies=proxies, rate=NO_MORE_ATTEMPTS)


@pytest.mark.parametrize(
    ("asked_for", "goes_to"),
    [
        ("/admin?tab=1", "/admin?tab=1"),
        ("//evil.example/x", "/"),
        ("/\\evil.example", "/"),
        ("https://evil.example", "/"),
        ("javascript:alert(1)", "/"),
        ("/a b", "/"),
        ("/a\r\nSet-Cookie: x=1", "/"),
        (None, "/"),
        ("", "/"),
    ],
)
def test_redirect_after_sign_in_stays_on_this_site(asked_for: str | None, goes_to: str) -> None:
    assert local_path(asked_for) == goes_to


def test_page_without_sign_in_redirects_to_login_and_back(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        nobody = Browser(asked)
        answer = await nobody.ask("GET", "/session/x?a=1&b=2")
        assert answer.status_code == 303
        assert answer.headers["location"] == "/login?next=/session/x%3Fa%3D1%26b%3D2"
        page = await nobody.ask("GET", answer.headers["location"])
        assert 'name="next" value="/session/x?a=1&amp;b=2"' in page.text
        problem(await nobody.ask("GET", "/api/auth/sessions"), 401, "not-authenticated")
        part = await nobody.ask("GET", "/", {"HX-Request": "true"})
        problem(part, 401, "not-authenticated")

    host.run(scenario)


@pytest.mark.parametrize(
    "headers",
    [
        {CSRF_HEADER: ""},
        {CSRF_HEADER: "0" * 64},
        {"Origin": FOREIGN},
        {"Origin": "null"},
        {"Origin": "http://controller.test.evil.example"},
        {"Origin": f"{OWN}:4001"},
        {"Origin": "http://[::1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
    ],
    ids=str,
)
def test_cookie_requests_need_csrf_token_and_own_origin(
    host: ApiHost, headers: dict[str, str]
) -> None:
    async def scenario(asked: Served) -> None:
        signed_in = await browser(asked, "user")
        body = {"userId": asked.users["user"], "provider": "claude"}
        refused = await signed_in.ask("POST", "/api/auth/start", headers, json=body)
        problem(refused, 403, "not-allowed")
        assert (await signed_in.ask("POST", "/logout", headers)).status_code == 403
        good = {"Origin": OWN, "Sec-Fetch-Site": "same-origin"}
        taken = await signed_in.ask("POST", "/api/auth/start", good, json=body)
        assert taken.status_code == 201

    host.run(scenario)


@pytest.mark.parametrize("headers", [{"Origin": FOREIGN}, {"Sec-Fetch-Site": "cross-site"}])
@pytest.mark.parametrize("path", ["/login", "/login/code"])
def test_sign_in_from_another_site_is_refused(
    host: ApiHost, path: str, headers: dict[str, str]
) -> None:
    async def scenario(asked: Served) -> None:
        form = {"token": asked.tokens["user"], "code": "x"}
        answer = await Browser(asked).ask("POST", path, headers, data=form)
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers

    host.run(scenario)


def test_csrf_token_of_another_sign_in_is_refused(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        one, other = await browser(asked, "user"), await browser(asked, "user")
        assert one.cookie is not None
        stolen = {CSRF_HEADER: csrf_token(one.cookie)}
        problem(await other.ask("POST", "/api/auth/sign-in-link", stolen), 403, "not-allowed")

    host.run(scenario)


def test_bearer_token_takes_precedence_over_the_cookie(host: ApiHost) -> None:
    """So a program's request never needs a CSRF token."""

    async def scenario(asked: Served) -> None:
        signed_in = await browser(asked, "user")
        headers = asked.headers("operator") | {CSRF_HEADER: ""}
        answer = await signed_in.ask("POST", "/api/auth/sign-in-link", headers)
        assert answer.status_code == 201

    host.run(scenario)


def test_logout_ends_only_its_own_sign_in(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        one, other = await browser(asked, "user"), await browser(asked, "user")
        answer = await one.ask("POST", "/logout")
        assert answer.headers["hx-redirect"] == "/login"
        assert f'{PLAIN_NAME}=""' in answer.headers["set-cookie"]
        assert (await one.ask("GET", "/api/auth/sessions")).status_code == 401
        assert (await other.ask("GET", "/api/auth/sessions")).status_code == 200

    host.run(scenario)


def test_sign_in_ends_when_its_token_is_revoked(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        services = asked.services
        signed_in = await browser(asked, "operator")
        tokens = await services.tokens.list(asked.users["operator"])
        await services.tokens.revoke(tokens[0].id)
        problem(await signed_in.ask("GET", "/api/auth/sessions"), 401, "not-authenticated")

    host.run(scenario)


def test_sign_in_lasts_until_jwt_expiry_or_configured_time(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        services, user = asked.services, asked.users["user"]
        short = Caller(user, "user", "jwt", now() + timedelta(seconds=60))
        for caller, latest in ((short, 60), (Caller(user, "user", "jwt"), 100)):
            secret, until = await services.sign_ins.create(caller, 100)
            assert until <= now() + timedelta(seconds=latest)
            assert await services.sign_ins.caller_of(secret) is not None
        over, _ = await services.sign_ins.create(short, -1)
        assert await services.sign_ins.caller_of(over) is None
        form = {"token": token_of(user, 60)}
        answer = await Browser(asked).ask("POST", "/login", data=form)
        assert answer.status_code == 303

    host.run(scenario)


def test_expired_cookie_is_deleted_without_counting_as_a_guess(host: ApiHost) -> None:
    """Tabs that stay open send such requests every few seconds."""

    async def scenario(asked: Served) -> None:
        stale = await browser(asked, "user")
        await stale.ask("POST", "/logout")
        answer = await stale.ask("GET", "/api/auth/sessions")
        assert answer.status_code == 401
        assert f'{PLAIN_NAME}=""' in answer.headers["set-cookie"]
        assert "Max-Age=0" in answer.headers["set-cookie"]

    host.run(scenario)


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_cross_site_requests_with_a_cookie_are_refused(host: ApiHost, site: str) -> None:
    async def scenario(asked: Served) -> None:
        signed_in = await browser(asked, "user")
        for told, status in ((site, 403), ("same-origin", 200), ("none", 200)):
            answer = await signed_in.ask("GET", "/api/auth/sessions", {"Sec-Fetch-Site": told})
            assert answer.status_code == status, told

    host.run(scenario)


@pytest.mark.parametrize("path", ["/login", "/login/code", "/api/auth/redeem"])
def test_sign_in_bodies_are_limited(host: ApiHost, path: str) -> None:
    async def scenario(asked: Served) -> None:
        for size, is_taken in ((12_000, True), (20_000, False)):
            answer = await asked.client.post(path, content=b"token=" + b"x" * size)
            assert (answer.status_code != 413) is is_taken, answer.text

    host.run(scenario)


def test_made_up_cookie_counts_as_a_guess(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        headers = {"Cookie": f"{PLAIN_NAME}=made-up", "X-Forwarded-For": "192.0.2.9"}
        answers = [
            await asked.client.get("/login/state", headers=headers)
            for _ in range(asked.services.settings.rate.failures_burst + 1)
        ]
        assert answers[0].json() == {"signedIn": False}
        assert answers[-1].status_code == 429

    proxies = ControllerSettings(trusted_proxies=("127.0.0.1",)).trusted_proxies  # type: ignore[arg-type]
    host.run(scenario, trusted_proxies=proxies, rate=NO_MORE_ATTEMPTS)


def test_sign_in_link_works_once(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        made = await asked.ask("POST", "/api/auth/sign-in-link", "operator")
        assert made.status_code == 201
        path, _, fragment = made.json()["url"].partition("#")
        assert path == "/login"
        form = {"code": fragment.removeprefix("code="), "next": "/"}
        first, second = Browser(asked), Browser(asked)
        assert (await first.ask("POST", "/login/code", data=form)).status_code == 303
        again = await second.ask("POST", "/login/code", data=form)
        assert again.status_code == 401
        assert "used before" in again.text
        assert second.cookie is None
        of_operator = await first.ask("GET", "/openapi.json")
        assert of_operator.status_code == 200

    host.run(scenario)


def test_browser_cannot_create_sign_in_links(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        signed_in = await browser(asked, "user")
        problem(await signed_in.ask("POST", "/api/auth/sign-in-link"), 403, "not-allowed")

    host.run(scenario)


def test_malformed_forms_are_refused(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        nobody = Browser(asked)
        for content in (b"\xff\xfe", b"&".join(b"a=1" for _ in range(20))):
            answer = await nobody.ask("POST", "/login", content=content)
            assert answer.status_code == 400, content

    host.run(scenario)


def test_problems_are_html_for_browsers_and_json_for_programs(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        signed_in = await browser(asked, "user")
        page = await signed_in.ask("GET", "/nowhere/<script>alert(1)</script>")
        assert page.status_code == 404
        assert page.headers["content-type"].startswith("text/html")
        assert "There is nothing at this address." in page.text
        assert "<script>alert" not in page.text
        answer = await signed_in.ask("GET", "/nowhere", {"Accept": "*/*"})
        told: dict[str, Any] = problem(answer, 404)
        assert told["instance"] == "/nowhere"

    host.run(scenario)


@pytest.mark.parametrize(
    "path", ["//login", "/login/", "/LOGIN", "/login/../api/auth/sessions", "/static/../metrics"]
)
def test_malformed_paths_do_not_bypass_authentication(host: ApiHost, path: str) -> None:
    async def scenario(asked: Served) -> None:
        answer = await asked.client.get(f"{OWN}{path}", headers={"Accept": "*/*"})
        assert answer.status_code in (401, 404), answer.text

    host.run(scenario)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS"])
def test_other_methods_of_open_paths_are_refused(host: ApiHost, method: str) -> None:
    async def scenario(asked: Served) -> None:
        for path in (
            "/login",
            "/login/code",
            "/api/auth/redeem",
            "/static/x/requests_and_notices.js",
        ):
            assert (await asked.client.request(method, path)).status_code == 405, path
        assert (await asked.client.request(method, "/session/x?ticket=y")).status_code == 401

    host.run(scenario)

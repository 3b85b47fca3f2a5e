"""The tests' own tool logs in at a real OpenID provider, by a real browser."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from playwright.async_api import Page

from polydev import http_client
from polydev.processes import Completed, run, spawn
from tests.browser import chromium, run_in_browser
from tests.oidc.provider import ACCOUNTS, CREDENTIALS, TOOL, Provider
from tests.web import page_of

# The browser that the tool opens: it only records the URL.
BROWSER = '#!/bin/sh\nprintf "%s\\n" "$1" >"$HOME/page"\n'


@dataclass(frozen=True)
class User:
    """A user of the tool, with a home and a browser."""

    home: Path
    issuer: str

    @property
    def environment(self) -> dict[str, str]:
        browser = str(self.home / "browser")
        return {"HOME": str(self.home), "TESTTOOL_ISSUER": self.issuer, "BROWSER": browser}

    def tool(self, verb: str, **environment: str) -> Completed:
        """Run a verb of the tool that needs no browser."""
        return run([TOOL, verb], env={**self.environment, **environment}, check=False)

    def begin_login(self) -> Login:
        pipe = subprocess.PIPE
        process = spawn(
            [TOOL, "login"], env=self.environment, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT
        )
        return Login(process, (self.home / "page").read_text().strip())

    @property
    def file(self) -> Path:
        return self.home / CREDENTIALS

    def credentials(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.file.read_text())
        return found


@dataclass(frozen=True)
class Login:
    """A login under way; `url` is the page that the tool wanted opened."""

    process: subprocess.Popen[bytes]
    url: str

    @property
    def asked(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlsplit(self.url).query).items()}

    def callback(self, **answer: str) -> str:
        return f"{self.asked['redirect_uri']}?{urlencode(answer)}"

    def end(self, pasted: str = "") -> tuple[int, str]:
        """Wait for the tool's end; return exit status and output."""
        said, _ = self.process.communicate(f"{pasted}\n".encode() if pasted else None)
        return self.process.returncode, said.decode()


@pytest.fixture
def user(oidc_provider: Provider, tmp_path: Path) -> User:
    browser = tmp_path / "browser"
    browser.write_text(BROWSER)
    browser.chmod(0o755)
    os.mkfifo(tmp_path / "page")
    return User(tmp_path, oidc_provider.issuer)


def in_browser(login: Login, act: Callable[[Page], Awaitable[None]]) -> None:
    """Run `act` on the page that the tool opened."""

    async def played() -> None:
        async with chromium() as browser, page_of(browser, expects_network_errors=True) as page:
            await page.goto(login.url)
            await act(page)

    run_in_browser(played())


async def enter(page: Page, name: str, password: str) -> None:
    """Enter name and password by keyboard alone, as in a VM."""
    await page.wait_for_selector("input[name=name]:focus")  # given after the page has loaded
    await page.keyboard.type(name)
    await page.keyboard.press("Tab")
    await page.keyboard.type(password)
    await page.keyboard.press("Enter")


def test_login_gives_tokens_for_the_user(oidc_provider: Provider, user: User) -> None:
    async def act(page: Page) -> None:
        await enter(page, "ada", "wrong")
        await page.wait_for_selector("[role=alert]:has-text('Wrong user name or password')")
        await enter(page, "ada", ACCOUNTS["ada"])
        await page.wait_for_selector("text=Let testtool in?")
        await page.wait_for_selector("button[value=allow]:focus")
        await page.keyboard.press("Enter")
        await page.wait_for_selector("text=testtool has your login")

    login = user.begin_login()
    in_browser(login, act)
    status, said = login.end()
    assert (status, said.splitlines()[-1]) == (0, "Logged in.")
    assert login.url in said
    assert oct(user.file.stat().st_mode & 0o777) == "0o600"
    assert user.credentials()["issuer"] == oidc_provider.issuer
    assert oidc_provider.userinfo(user.credentials()["access_token"]) == {
        "sub": "ada",
        "name": "ada",
    }
    assert user.tool("status").stdout == "Logged in as ada.\n"
    refresh_tokens_are_used_once(user)
    assert user.tool("logout").status == 0
    assert user.tool("status").stderr == "testtool: not logged in\n"


def refresh_tokens_are_used_once(user: User) -> None:
    before = {**user.credentials(), "expires_at": 0}
    user.file.write_text(json.dumps(before))
    assert user.tool("status").status == 0
    after = user.credentials()
    assert after["refresh_token"] != before["refresh_token"]
    # The old token is refused, and the provider then revokes the new one as stolen, too.
    user.file.write_text(json.dumps(before))
    refused = user.tool("status")
    assert (refused.status, "invalid_grant" in refused.stderr) == (1, True)
    user.file.write_text(json.dumps({**after, "expires_at": 0}))
    assert "invalid_grant" in user.tool("status").stderr


def test_denied_login_fails(user: User) -> None:
    async def act(page: Page) -> None:
        await enter(page, "grace", ACCOUNTS["grace"])
        await page.click("text=Deny")
        await page.wait_for_selector("text=the login was denied")

    login = user.begin_login()
    in_browser(login, act)
    status, said = login.end()
    assert status == 1
    assert said.endswith("testtool: the login was denied: The user denied the login.\n")
    assert not user.file.exists()


def test_callback_with_wrong_state_is_refused(user: User) -> None:
    login = user.begin_login()
    assert http_client.get(login.callback(code="c", state="another")).status_code == 200
    status, said = login.end()
    assert status == 1
    assert "came back from another login than this one" in said


def test_invalid_code_is_refused_with_provider_error(user: User) -> None:
    login = user.begin_login()
    status, said = login.end(login.callback(code="mistyped", state=login.asked["state"]))
    assert status == 1
    assert "the provider refused: invalid_grant" in said


def test_login_without_callback_times_out(user: User) -> None:
    (user.home / "browser").write_text("#!/bin/sh\n")
    ended = user.tool("login", TESTTOOL_SECONDS="0.5")
    assert ended.status == 1
    assert ended.stderr == "testtool: the browser did not come back within 0.5 s: log in again\n"


def test_unreachable_provider_is_reported(user: User) -> None:
    issuer = "http://127.0.0.1:9"
    ended = user.tool("login", TESTTOOL_ISSUER=issuer)
    assert (ended.status, ended.stdout) == (1, "")
    assert f"the provider at {issuer} cannot be reached: " in ended.stderr
    assert "refused" in ended.stderr

"""Logins at a real OpenID provider that something comes between, over the API of a controller.

In the VMs, only what shows pages is fake: agent, tool and the programs of logins are real.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from polydev.client.credentials_key import new_key
from polydev.controller.database import create_engine
from polydev.controller.store import tables
from polydev.controller.store.transactions import Database
from polydev.controller.store.users import Users
from tests.api import token_of
from tests.controllers import Controller, controller, run
from tests.login_guests import NAME, LoginGuest, has_login_guests
from tests.oidc.person import Person
from tests.oidc.provider import Provider
from tests.vms import FakeHost

ADA, GRACE = Person("ada"), Person("grace")
LONG_AGO = datetime(2020, 1, 1, tzinfo=timezone.utc)
SETTINGS: dict[str, Any] = {
    "credentials_key": SecretStr(new_key()),
    "login": {"complete_after_seconds": None},
    "vm_check": {"every_seconds": 0.05, "timeout_seconds": 60},
}


@dataclass(frozen=True)
class Login:
    """A session of a user whose tool waits for them; `url` is the page that it opened."""

    asked: Controller
    session: dict[str, Any]
    guest: LoginGuest
    url: str

    def by(self, asked: Controller) -> Login:
        """The same, asked about at another controller."""
        return replace(self, asked=replace(asked, user_id=self.asked.user_id, user=self.asked.user))

    @property
    def link(self) -> str:
        link: str = self.session["links"]["oauthUrl"]
        return link

    async def ask(self, method: str, path: str, **words: Any) -> httpx.Response:
        return await self.asked.http.request(method, path, headers=self.asked.user, **words)

    async def until(self, **wanted: Any) -> dict[str, Any]:
        async with self.asked.events(self.session) as events:
            return await events.until(**wanted)

    async def failed(self, words: str) -> None:
        """Wait until the login has failed with these words, for which the API has a way on."""
        async with self.asked.events(self.session) as events:
            while words not in (await events.until(status="failed"))["detail"]:
                pass  # one before
        refused = await self.ask("GET", self.link)
        assert refused.status_code == 502
        assert words in refused.json()["detail"]
        assert "POST" in refused.json()["hint"]

    async def again(self) -> Login:
        """Start the tool again."""
        assert (await self.ask("POST", self.link)).status_code in (200, 202)
        return await self.opened()

    async def opened(self) -> Login:
        """The same with the page that the tool opens next."""
        url = await self.guest.pages.get()
        while url == self.url:  # shown again, since the browser was slow to take it
            url = await self.guest.pages.get()
        assert (await self.ask("GET", self.link)).json()["url"] == url
        return replace(self, url=url)

    async def credentials(self) -> httpx.Response:
        return await self.ask("GET", f"/api/auth/credentials/{NAME}")

    async def is_of(self, oidc_provider: Provider, name: str) -> None:
        """Wait for the hand-over: the user's credentials are those of the provider's user."""
        receipt = await self.until(kept=True)
        kept = (await self.credentials()).json()
        assert kept["sessionId"] == self.session["id"]
        token = kept["credentials"]["access_token"]
        assert (await asyncio.to_thread(oidc_provider.userinfo, token))["sub"] == name
        found = await self.asked.get(self.session["links"]["self"])
        assert found["status"] == "authenticated"
        assert found["credentialsReceipt"]["sha256"] == receipt["sha256"]
        assert found["loginDetail"] is None


async def new_user(host: FakeHost, asked: Controller) -> Controller:
    """The controller, as another user asks it, who stays when it is restarted."""
    database = Database(create_engine(host.settings_values["database_url"]))
    try:
        user = await Users(database).add("user")
    finally:
        await database.close()
    return replace(asked, user_id=user.id, user={"Authorization": f"Bearer {token_of(user.id)}"})


async def begun(host: FakeHost, asked: Controller) -> Login:
    """A session whose tool waits for its user, who is a new one."""
    return await begun_by(host, await new_user(host, asked))


async def begun_by(host: FakeHost, asked: Controller) -> Login:
    session = await asked.start(provider=NAME)
    async with asked.events(session) as events:
        await events.until(state="vm_created")
    guest = host.hypervisor.vms[(await asked.get(f"/api/vm/{session['vmId']}"))["slot"]]
    assert isinstance(guest, LoginGuest)
    return await Login(asked, session, guest, "").again()


@contextmanager
def left_free(login: Login) -> Iterator[None]:
    """Keep the port at which a tool that has ended waited: another program could be given it.

    Where the browser came back, the kernel keeps it for a minute.
    """
    asks = parse_qs(urlsplit(login.url).query)
    with socket.socket() as kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", urlsplit(asks["redirect_uri"][0]).port))
        yield


async def expire(host: FakeHost, session: dict[str, Any]) -> None:
    """Have a session's time be over."""
    database = Database(create_engine(host.settings_values["database_url"]))
    try:
        async with database.writing() as connection:
            of_it = tables.sessions.c.id == session["id"]
            statement = sa.update(tables.sessions).where(of_it).values(expires_at=LONG_AGO)
            await connection.execute(statement)
    finally:
        await database.close()


def test_two_users_at_once_get_their_own_credentials(
    oidc_provider: Provider, tmp_path: Path
) -> None:
    async def scenario(host: FakeHost) -> None:
        has_login_guests(host, oidc_provider.issuer)
        async with controller(host, **SETTINGS) as asked:
            both = await asyncio.gather(begun(host, asked), begun(host, asked))
            people = (ADA, GRACE)
            logins = tuple(zip(both, people, strict=True))
            await asyncio.gather(*[person.log_in(login.url) for login, person in logins])
            for login, person in logins:
                await login.is_of(oidc_provider, person.name)

    run(tmp_path, scenario)


def test_failed_login_can_start_again(oidc_provider: Provider, tmp_path: Path) -> None:
    """Started twice at once, denied, a code mistyped, then finished; older pages are over."""

    async def scenario(host: FakeHost) -> None:
        has_login_guests(host, oidc_provider.issuer)
        async with controller(host, **SETTINGS) as asked:
            denied = await begun(host, asked)
            twice = await asyncio.gather(*[denied.ask("POST", denied.link) for _ in range(2)])
            assert [each.json()["url"] for each in twice] == [denied.url] * 2
            assert denied.guest.starts == 1
            await ADA.deny(denied.url)
            await denied.failed("The user denied the login.")

            twice = await asyncio.gather(*[denied.ask("POST", denied.link) for _ in range(2)])
            # 200 if the tool has opened its page before that request was answered.
            assert {each.status_code for each in twice} <= {200, 202}
            mistyped = await denied.opened()
            assert mistyped.guest.starts == 2
            asks = {name: each[0] for name, each in parse_qs(urlsplit(mistyped.url).query).items()}
            code = f"{asks['redirect_uri']}?code=mistyped&state={asks['state']}"
            link = mistyped.session["links"]["oauthCode"]
            assert (await mistyped.ask("POST", link, json={"code": code})).status_code == 202
            await mistyped.failed("the provider refused: invalid_grant")
            with left_free(mistyped):
                last = await mistyped.again()
                for over in (denied, mistyped):
                    with pytest.raises(httpx.ConnectError):  # nobody waits for its callback
                        await ADA.log_in(over.url)
            assert (await last.ask("GET", last.link)).json()["status"] == "waiting"
            await ADA.log_in(last.url)
            await last.is_of(oidc_provider, "ada")
            done = await last.ask("POST", last.link)
            assert (done.status_code, last.guest.starts) == (409, 3)
            assert "another session" in done.json()["hint"]

    run(tmp_path, scenario)


def test_expired_session_stores_nothing_and_next_one_logs_in(
    oidc_provider: Provider, tmp_path: Path
) -> None:
    async def scenario(host: FakeHost) -> None:
        has_login_guests(host, oidc_provider.issuer)
        async with controller(host, **SETTINGS) as asked:
            login = await begun(host, asked)
            await expire(host, login.session)
            await login.until(state="expired")
            await asked.released(login.session["vmId"])
            assert login.guest.processes() == []
            with left_free(login), pytest.raises(httpx.ConnectError):  # the user is too late
                await ADA.log_in(login.url)
            refused = await login.ask("GET", login.link)
            assert (refused.status_code, (await login.credentials()).status_code) == (410, 404)
            assert refused.json()["hint"]
            another = await begun_by(host, login.asked)
            await ADA.log_in(another.url)
            await another.is_of(oidc_provider, "ada")

    run(tmp_path, scenario)


def test_login_finishes_while_no_controller_runs(oidc_provider: Provider, tmp_path: Path) -> None:
    async def scenario(host: FakeHost) -> None:
        has_login_guests(host, oidc_provider.issuer)
        async with controller(host, **SETTINGS) as asked:
            login, other = await asyncio.gather(begun(host, asked), begun(host, asked))
        assert "has your login" in await ADA.log_in(login.url)
        async with controller(host, **SETTINGS) as asked:
            await login.by(asked).is_of(oidc_provider, "ada")
            waits = await other.by(asked).ask("GET", other.link)
            assert waits.json()["url"] == other.url
            await GRACE.log_in(other.url)
            await other.by(asked).is_of(oidc_provider, "grace")

    run(tmp_path, scenario)


def test_login_continues_after_vm_is_paused_and_resumed(
    oidc_provider: Provider, tmp_path: Path
) -> None:
    async def scenario(host: FakeHost) -> None:
        has_login_guests(host, oidc_provider.issuer)
        async with controller(host, **SETTINGS) as asked:
            login = await begun(host, asked)
            guest = login.guest
            await host.hypervisor.pause(guest.launch.slot, guest.launch.vm_id)
            asking = asyncio.create_task(login.ask("GET", login.link))
            came_back = asyncio.create_task(ADA.log_in(login.url))
            await guest.until_asked_in_vain()
            assert not asking.done()
            await host.hypervisor.resume(guest.launch.slot, guest.launch.vm_id)
            assert (await asking).status_code == 200
            assert "has your login" in await came_back
            await login.is_of(oidc_provider, "ada")
            assert guest.starts == 1

    run(tmp_path, scenario)

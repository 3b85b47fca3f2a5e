"""Viewers with one-time tickets, as the pages use them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from polydev.controller.relay.close_reasons import NOT_ALLOWED, NOT_AUTHENTICATED
from polydev.controller.store.sign_ins import Purpose
from tests.relays import HOST, PATIENCE_SECONDS, Screens, closing_of, screens
from tests.vms import RFB_GREETING

Run = Callable[[Callable[[Screens], Awaitable[None]]], None]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    async def play(scenario: Callable[[Screens], Awaitable[None]]) -> None:
        async with screens(tmp_path) as made:
            await scenario(made)

    return lambda scenario: asyncio.run(play(scenario))


def client_of(made: Screens, **words: Any) -> httpx.AsyncClient:
    url = f"http://{HOST}:{made.port}"
    return httpx.AsyncClient(base_url=url, timeout=PATIENCE_SECONDS, **words)


async def ticket(made: Screens, session_id: str, purpose: Purpose = "viewer") -> str:
    headers = {"Authorization": f"Bearer {made.tokens['user']}"}
    async with client_of(made, headers=headers) as asked:
        path = f"/api/auth/session/{session_id}/tickets"
        answer = await asked.post(path, json={"purpose": purpose})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["ticket"])


def test_ticket_opens_one_viewer(run: Run) -> None:
    async def scenario(made: Screens) -> None:
        session = await made.session()
        uri = f"{made.url(session.id)}?ticket={await ticket(made, session.id)}"
        own = f"http://{HOST}:{made.port}"
        async with made.connect(session.id, None, uri=uri, origin=own) as viewer:
            assert await asyncio.wait_for(viewer.recv(), PATIENCE_SECONDS) == RFB_GREETING
        async with made.connect(session.id, None, uri=uri, origin=own) as viewer:
            code, reason = await closing_of(viewer)
        assert code == NOT_AUTHENTICATED
        assert "used before" in reason

    run(scenario)


@pytest.mark.parametrize("origin", ["https://evil.example", "null", f"http://{HOST}:1"])
def test_foreign_origin_is_refused_and_keeps_the_ticket(run: Run, origin: str) -> None:
    async def scenario(made: Screens) -> None:
        session = await made.session()
        uri = f"{made.url(session.id)}?ticket={await ticket(made, session.id)}"
        async with made.connect(session.id, None, uri=uri, origin=origin) as viewer:
            assert (await closing_of(viewer))[0] == NOT_ALLOWED
        async with made.connect(session.id, None, uri=uri) as viewer:
            assert await asyncio.wait_for(viewer.recv(), PATIENCE_SECONDS) == RFB_GREETING

    run(scenario)


def test_ticket_is_bound_to_session_and_purpose(run: Run) -> None:
    async def scenario(made: Screens) -> None:
        session, other = await made.session(), await made.session()
        for given, code in (
            (await ticket(made, session.id), NOT_ALLOWED),
            (await ticket(made, other.id, "page"), NOT_AUTHENTICATED),
            ("x", NOT_AUTHENTICATED),
            ("", NOT_AUTHENTICATED),
        ):
            uri = f"{made.url(other.id)}?ticket={given}"
            async with made.connect(other.id, None, uri=uri) as viewer:
                assert (await closing_of(viewer))[0] == code

    run(scenario)


def test_a_cookie_opens_no_viewer(run: Run) -> None:
    async def scenario(made: Screens) -> None:
        session = await made.session()
        async with client_of(made) as asked:
            signed_in = await asked.post("/login", data={"token": made.tokens["user"]})
        cookie = signed_in.headers["set-cookie"].partition(";")[0]
        headers = {"Cookie": cookie}
        async with made.connect(session.id, None, additional_headers=headers) as viewer:
            assert (await closing_of(viewer))[0] == NOT_AUTHENTICATED

    run(scenario)


def test_sign_out_closes_the_viewer(
    run: Run,
) -> None:
    async def scenario(made: Screens) -> None:
        session = await made.session()
        services = made.services
        services.token_watch._poller._pause = lambda: asyncio.sleep(0.01)
        user = await services.tokens.caller_of(made.tokens["user"])
        assert user is not None
        secret, _ = await services.sign_ins.create(user, 100)
        browser = await services.sign_ins.caller_of(secret)
        assert browser is not None
        assert browser.sign_in_id is not None
        given, _ = await services.tickets.create("viewer", browser, 30, session.id)
        uri = f"{made.url(session.id)}?ticket={given}"
        async with made.connect(session.id, None, uri=uri) as viewer:
            assert await asyncio.wait_for(viewer.recv(), PATIENCE_SECONDS) == RFB_GREETING
            await services.sign_ins.end(browser.sign_in_id)
            code, reason = await closing_of(viewer)
        assert (code, reason) == (NOT_AUTHENTICATED, "the browser was signed out")

    run(scenario)

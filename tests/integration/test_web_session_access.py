"""Access to a session's page: by a link, in a frame, by a copied address."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest
from playwright.async_api import ConsoleMessage, Route

from polydev.controller.entities import Session
from tests.browser import run_in_browser
from tests.web import (
    CANVAS,
    QUICK_TIMERS,
    Play,
    Site,
    open_session,
    page_of,
    sign_in,
    sites,
    until_covered,
    until_shown,
)


def test_share_link_opens_one_read_only_viewer(play: Play) -> None:
    async def scenario(site: Site) -> None:
        typed = site.screen.terminal()
        session = await site.session()
        async with page_of(site.browser) as page:
            await open_session(page, site, session)
            await until_shown(page)
            await typed.began()
            await page.click("#share-button")
            await page.click("#make-link-button")
            await page.wait_for_selector("#share-made:not([hidden])")
            link = await page.input_value("#share-link")
            async with page_of(site.browser) as spectator:
                await spectator.goto(link)
                await until_shown(spectator)
                assert "you can look" in await spectator.inner_text("#status-text")
                assert await spectator.is_hidden("#end-button")
                await spectator.reload()
                await until_shown(spectator)
                await spectator.mouse.click(300, 300)
                await spectator.keyboard.type("secret")
            await page.click("#type-button")
            await page.keyboard.type("mine")
            await page.keyboard.press("Enter")
            await typed.until("mine\n")
            async with page_of(site.browser, expects_network_errors=True) as late:
                await late.goto(link)
                await until_covered(late, "refused", "used before")
                assert await late.inner_text("#status-text") == "No access"

    play(scenario)


async def link_to(site: Site, session: Session) -> str:
    """Return a link to the session's page, as a front end gets it for its user."""
    async with httpx.AsyncClient(base_url=site.url, trust_env=False) as client:
        answer = await client.post(
            f"/api/auth/session/{session.id}/tickets",
            json={"purpose": "page"},
            headers={"Authorization": f"Bearer {site.made.tokens['user']}"},
        )
    return site.url + str(answer.json()["url"])


def test_link_whose_first_requests_got_no_answer_opens_the_page(play: Play) -> None:
    async def scenario(site: Site) -> None:
        failing = iter(range(2))

        async def fail_at_first(route: Route) -> None:
            if next(failing, None) is None:
                await route.continue_()
            else:
                await route.abort("connectionreset")

        async with page_of(site.browser, expects_network_errors=True) as page:
            await page.add_init_script(QUICK_TIMERS)
            await page.route("**/api/auth/redeem", fail_at_first)
            await page.goto(await link_to(site, await site.session()))
            await until_shown(page)
        assert next(failing, None) is None

    play(scenario)


@asynccontextmanager
async def front_ends(shows: list[str]) -> AsyncIterator[str]:
    """The origin of a site whose page shows another one in a frame."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        page = f'<iframe width="1000" height="700" src="{shows[0]}"></iframe>'.encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(page)}"
        writer.write(f"{head}\r\nConnection: close\r\n\r\n".encode() + page)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://localhost:{server.sockets[0].getsockname()[1]}"


def reports_framing(message: ConsoleMessage) -> bool:
    return "frame-ancestors" in message.text and "blocked" in message.text


@pytest.mark.parametrize("is_configured", [True, False])
def test_only_configured_origin_may_frame_session_page(
    tmp_path: Path, packed_assets: Path, is_configured: bool
) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            shows: list[str] = []
            origin = await stack.enter_async_context(front_ends(shows))
            web = {"embed_origins": [origin] if is_configured else []}
            site = await stack.enter_async_context(sites(tmp_path, packed_assets, web=web))
            typed = site.screen.terminal()
            shows.append(await link_to(site, await site.session()))
            page = await stack.enter_async_context(
                page_of(site.browser, expects_network_errors=not is_configured)
            )
            if not is_configured:
                async with page.expect_console_message(reports_framing):
                    await page.goto(origin)
                return
            await page.goto(origin)
            framed = page.frame_locator("iframe")
            await framed.locator(CANVAS).click(position={"x": 300, "y": 300})
            await typed.began()
            await framed.locator("#cover").wait_for(state="hidden")
            await page.keyboard.type("in a frame")
            await page.keyboard.press("Enter")
            await typed.until("in a frame\n")
            assert await framed.locator("#home").is_hidden()

    run_in_browser(scenario())


def test_session_page_is_forbidden_to_other_users(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        async with page_of(site.browser, expects_network_errors=True) as page:
            await page.goto(site.page_url(session))
            await page.wait_for_url(lambda url: "/login?next=" in url)
            await sign_in(page, site, "other user")
            answer = await page.goto(site.page_url(session))
            assert answer is not None
            assert answer.status == 403
            assert "another user" in await page.inner_text("main")

    play(scenario)

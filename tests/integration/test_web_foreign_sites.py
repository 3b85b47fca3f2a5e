"""Pages of other sites in a real browser: what they can do to a signed-in user.

The controller is at 127.0.0.1, the other site at localhost: to a browser these are two sites.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Page

from polydev.controller.settings import WebSettings
from polydev.controller.store.sign_ins import Purpose
from tests.browser import chromium, run_in_browser
from tests.relays import HOST, Screens, screens
from tests.web import PATIENCE_MS

Run = Callable[[Callable[[Screens, Page, "ForeignSite"], Awaitable[None]]], None]


class ForeignSite:
    """A site with one page, which each test writes."""

    def __init__(self, port: int) -> None:
        self.url = f"http://localhost:{port}"
        self.html = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = f"<!doctype html><title>foreign</title>{self.html}".encode()
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()


@asynccontextmanager
async def foreign_site() -> AsyncIterator[ForeignSite]:
    site = ForeignSite(0)
    server = await asyncio.start_server(lambda *both: site.serve(*both), HOST, 0)
    async with server:
        site.url = f"http://localhost:{server.sockets[0].getsockname()[1]}"
        yield site


@asynccontextmanager
async def both_sites(
    root: Path, packed_assets: Path, *, may_embed: bool = False
) -> AsyncIterator[tuple[Screens, Page, ForeignSite]]:
    """Our site, a page of a browser that is signed in there, and the other site."""
    async with foreign_site() as foreign, chromium() as browser:
        web = WebSettings(embed_origins=(foreign.url,) if may_embed else ())
        async with screens(root, packed_assets=packed_assets, web=web) as made:
            # Console errors are allowed, since these tests cause refusals.
            page = await browser.new_page()
            page.set_default_timeout(PATIENCE_MS)
            await page.goto(f"{own(made)}/login")
            await page.fill("#token", made.tokens["user"])
            await page.click("button[type=submit]")
            await page.wait_for_url(f"{own(made)}/")
            yield made, page, foreign


def own(made: Screens) -> str:
    return f"http://{HOST}:{made.port}"


async def ticket_url(made: Screens, session_id: str, purpose: Purpose = "page") -> str:
    headers = {"Authorization": f"Bearer {made.tokens['user']}"}
    async with httpx.AsyncClient(base_url=own(made), headers=headers) as asked:
        path = f"/api/auth/session/{session_id}/tickets"
        answer = await asked.post(path, json={"purpose": purpose})
    return own(made) + str(answer.json()["url"])


async def can_be_framed(page: Page, foreign: ForeignSite, url: str) -> bool:
    """Return whether the other site's page can show ours in a frame."""
    foreign.html = f'<iframe src="{url}" width=800 height=600></iframe>'
    await page.goto(foreign.url)
    (frame,) = [each for each in page.frames if each is not page.main_frame]
    await frame.wait_for_load_state()
    return await frame.locator("main").count() > 0


@pytest.mark.parametrize("may_embed", [False, True])
def test_framing_needs_configured_origin_and_ticket(
    tmp_path: Path, packed_assets: Path, may_embed: bool
) -> None:
    async def play() -> None:
        async with both_sites(tmp_path, packed_assets, may_embed=may_embed) as (made, page, site):
            session = await made.session()
            url = await ticket_url(made, session.id)
            assert await can_be_framed(page, site, url) is may_embed
            for path in ("/", "/login", f"/session/{session.id}", "/session/x?tickets=1"):
                assert not await can_be_framed(page, site, own(made) + path), path

    run_in_browser(play())


FORGED: dict[str, str] = {
    "a form": '<form method=post action="{own}{path}"><input name=userId value="{user}"></form>'
    "<script>document.forms[0].submit()</script>",
    "a form that looks like JSON": '<form method=post enctype=text/plain action="{own}{path}">'
    '<input name=\'{{"userId": "{user}", "provider": "claude", "x": "\' value=\'"}}\'></form>'
    "<script>document.forms[0].submit()</script>",
    "a script with the browser's cookies": "<script>fetch('{own}{path}', {{method: 'POST',"
    " mode: 'no-cors', credentials: 'include', body: '{{}}'}}).finally(() => document.title"
    " = 'done')</script>",
}


@pytest.mark.parametrize("kind", FORGED)
def test_cross_site_requests_change_nothing(tmp_path: Path, packed_assets: Path, kind: str) -> None:
    async def play() -> None:
        async with both_sites(tmp_path, packed_assets) as (made, page, site):
            for path in ("/api/auth/start", "/logout", "/login"):
                words = {"own": own(made), "path": path, "user": made.users["user"]}
                site.html = FORGED[kind].format(**words)
                async with page.expect_response(f"{own(made)}{path}") as answered:
                    await page.goto(site.url)
                assert (await answered.value).status in (401, 403, 422), path
            assert await made.services.sessions.list() == []
            answer = await page.request.get(f"{own(made)}/api/auth/sessions")
            assert answer.status == 200  # still signed in

    run_in_browser(play())


def test_foreign_page_cannot_open_viewer_or_read_answers(
    tmp_path: Path, packed_assets: Path
) -> None:
    """This holds even if the page has got hold of a ticket."""

    async def play() -> None:
        async with both_sites(tmp_path, packed_assets) as (made, page, site):
            session = await made.session()
            url = (await ticket_url(made, session.id, "viewer")).replace("http:", "ws:")
            await page.goto(site.url)
            closed: Any = await page.evaluate(
                "url => new Promise(done => { const socket = new WebSocket(url, 'binary');"
                " socket.onclose = event => done([event.code, event.reason]); })",
                url,
            )
            assert closed == [4403, "access denied: tickets may only be used by pages of this host"]
            read = await page.evaluate(
                "url => fetch(url, {credentials: 'include'}).then(a => a.text(), () => null)",
                f"{own(made)}/api/auth/sessions",
            )
            assert read is None

    run_in_browser(play())


def test_link_from_another_site_keeps_user_signed_in(tmp_path: Path, packed_assets: Path) -> None:
    """The cookie is sent only with requests from our own pages, such as the sign-in page's."""

    async def play() -> None:
        async with both_sites(tmp_path, packed_assets) as (made, page, site):
            site.html = f'<a href="{own(made)}/?here=1">there</a>'
            await page.goto(site.url)
            await page.click("a")
            await page.wait_for_url(f"{own(made)}/?here=1")

    run_in_browser(play())

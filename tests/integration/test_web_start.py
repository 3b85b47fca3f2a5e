"""The start page in a real browser: starting sessions, lists of sessions and logins, errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, Response
from pyrage import x25519

from polydev.client.credentials_key import new_key
from polydev.controller.store.credential_handovers import CredentialHandovers
from polydev.controller.store.sessions import NewSession
from tests.browser import run_in_browser
from tests.vms import IMAGE_DIGEST
from tests.web import QUICK_TIMERS, Play, Site, page_of, sign_in, sites, until_covered

# Bytes of compressed files, without noVNC's.
MOST_BYTES = 120_000
# The time until the list of sessions has had another answer.
NEXT_UPDATE = """() => new Promise(done => {
    document.getElementById("sessions").addEventListener("htmx:afterOnLoad", () => done());
})"""
Scenario = Callable[[Site, Page], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path, packed_assets: Path) -> Play:
    async def played(
        scenario: Scenario, *, expects_network_errors: bool = False, **changes: Any
    ) -> None:
        async with sites(tmp_path, packed_assets, **changes) as site:
            words = {"expects_network_errors": expects_network_errors}
            async with page_of(site.browser, **words) as page:
                await scenario(site, page)

    return lambda scenario, **changes: run_in_browser(played(scenario, **changes))


def test_start_button_starts_session_with_chosen_tool(play: Play) -> None:
    async def scenario(site: Site, page: Page) -> None:
        await sign_in(page, site)
        assert "18 June 2026" in await page.inner_text("#known-gemini")
        await page.click("text=Start with Codex")
        await page.wait_for_url("**/session/*")
        await until_covered(page, "coming")
        (session,) = await site.made.services.sessions.list()
        assert (session.provider, session.user_id) == ("codex", site.made.users["user"])
        assert page.url == site.page_url(session)
        await page.click("#home")
        await page.wait_for_selector("#sessions .row:has-text('Codex')")

    play(scenario)


def test_session_can_be_started_by_keyboard(play: Play) -> None:
    async def scenario(site: Site, page: Page) -> None:
        await sign_in(page, site)
        await page.focus(".brand")
        while await page.evaluate("document.activeElement.dataset.start") != "claude":
            await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await page.wait_for_url("**/session/*")

    play(scenario)


def test_full_host_is_reported_with_next_step(play: Play) -> None:
    async def scenario(site: Site, page: Page) -> None:
        await site.session(user="other user")
        await sign_in(page, site)
        await page.click("text=Start with Claude Code")
        await page.wait_for_selector("#start-problem:has-text('all 1 slots are taken')")
        assert "End a session, or try again later." in await page.inner_text("#start-problem")
        assert await page.is_enabled("text=Start with Claude Code")

    play(scenario, expects_network_errors=True, slots=(2,))


def test_session_limit_is_reported(play: Play) -> None:
    async def scenario(site: Site, page: Page) -> None:
        await site.session()
        await sign_in(page, site)
        await page.click("text=Start with Claude Code")
        await page.wait_for_selector("#start-problem:has-text('No session was started')")
        assert "End one of them first." in await page.inner_text("#start-problem")

    play(scenario, expects_network_errors=True, session={"per_user": 1})


def test_own_sessions_are_listed_and_ended_after_confirmation(play: Play) -> None:
    async def scenario(site: Site, page: Page) -> None:
        sessions = site.made.services.sessions
        live = await site.session()
        over = await site.session()
        await sessions.apply(over.id, "fail", "the VM's process ended: signal 9")
        theirs = await site.session(user="other user")
        await sign_in(page, site)
        rows = await page.locator("#sessions .row").all_inner_texts()
        assert ["ready" in rows[0], "signal 9" in rows[1]] == [True, True]
        assert len(rows) == 2
        assert theirs.id not in await page.content()
        await page.click(f"#end-{live.id}")
        await page.click("dialog >> text=Back")
        assert (await sessions.get(live.id)).is_live
        await page.click(f"#end-{live.id}")
        await page.locator("dialog [value=yes]").click()
        await page.wait_for_selector(f"#end-{live.id}", state="detached")
        assert await page.locator("#sessions [data-state=terminated]").count() == 1
        assert (await sessions.get(live.id)).state == "terminated"

    play(scenario, slots=(2, 3, 4))


@pytest.mark.parametrize("path", ["/", "/session/{id}"])
def test_pages_load_few_bytes(play: Play, path: str) -> None:
    async def scenario(site: Site, page: Page) -> None:
        session = await site.session()
        await sign_in(page, site)
        loaded: dict[str, int] = {}

        async def weigh(response: Response) -> None:
            if "/novnc/" not in response.url and "/static/" in response.url:
                loaded[response.url] = int(await response.header_value("content-length") or 0)

        page.on("response", weigh)
        await page.goto(site.url + path.format(id=session.id), wait_until="load")
        await page.wait_for_selector("#screen canvas, #sessions .row")
        assert all(loaded.values())
        assert 10_000 < sum(loaded.values()) < MOST_BYTES, loaded

    play(scenario)


def test_session_list_updates_itself(play: Play) -> None:
    async def scenario(site: Site, page: Page) -> None:
        session = await site.made.booting(site.screen)
        await sign_in(page, site)
        await page.wait_for_selector("#sessions .row:has-text('its VM is starting')")
        await site.made.services.vms.ready(session.vm_id)
        await page.wait_for_selector("#sessions .row:has-text('ready')")

    play(scenario)


def test_button_that_is_pressed_stays_in_a_list_that_updates_itself(play: Play) -> None:
    async def scenario(site: Site, page: Page) -> None:
        live = await site.session()
        await page.add_init_script(QUICK_TIMERS)
        await sign_in(page, site)
        await page.hover(f"#end-{live.id}")
        await page.mouse.down()
        await page.evaluate(NEXT_UPDATE)
        await page.mouse.up()
        await page.locator("dialog >> text=Back").click()
        seen = await page.query_selector(f"#end-{live.id}")
        assert seen is not None
        await seen.wait_for_element_state("hidden")  # the list updates itself again

    play(scenario)


def test_stored_logins_are_listed_and_deleted_after_confirmation(play: Play) -> None:
    async def scenario(site: Site, page: Page) -> None:
        stored, user = site.made.services.credentials, site.made.users["user"]
        await stored.store(user, "claude", b'{"a": 1}')
        await sign_in(page, site)
        await page.wait_for_selector("#logins .row:has-text('Claude Code')")
        await page.click("#forget-claude")
        await page.locator("dialog [value=no]").click()
        assert len(await stored.list(user)) == 1
        await page.click("#forget-claude")
        await page.locator("dialog [value=yes]").click()
        await page.wait_for_selector("#logins:has-text('None are stored')")
        assert await stored.list(user) == []

    play(scenario, credentials_key=new_key())


def test_stored_login_shows_details_and_starts_session(play: Play) -> None:
    async def scenario(site: Site, page: Page) -> None:
        services, user = site.made.services, site.made.users["user"]
        first = await site.session()
        await services.sessions.set_login(first.id, "waiting")
        await services.credentials.store(user, "claude", b'{"a":1}', first.id)
        await sign_in(page, site)
        row = page.locator("#logins .row")
        assert f"session {first.id[:8]}" in await row.inner_text()
        await page.focus("#use-claude")
        await page.keyboard.press("Enter")
        await page.wait_for_url("**/session/*")
        held_by = page.url.rpartition("/")[2]
        assert (await services.sessions.get(held_by)).stored_credentials == "wanted"
        await page.click("#home")
        await page.wait_for_selector("#logins .row:has-text('in use by a session')")
        assert await page.locator("#use-claude").count() == 0
        assert await row.locator("a").get_attribute("href") == f"/session/{held_by}"
        await page.click("#log summary")
        await page.wait_for_selector("#log-rows .row:has-text('was stored')")

    play(scenario, credentials_key=new_key())


def test_login_sealed_to_recipient_shows_its_key(play: Play) -> None:
    async def scenario(site: Site, page: Page) -> None:
        services, user = site.made.services, site.made.users["user"]
        recipient = str(x25519.Identity.generate().to_public())
        session = await site.session(new=NewSession(user, "codex", IMAGE_DIGEST, None, recipient))
        session = await services.sessions.set_login(session.id, "waiting")
        await CredentialHandovers(services.database, None, None).hand_over(session, b'{"a":1}')
        await sign_in(page, site)
        words = await page.inner_text("#logins .row")
        assert f"the key {recipient} can open it" in words
        assert await page.locator("[data-use]").count() == 0

    play(scenario)

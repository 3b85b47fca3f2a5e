"""Accessibility of the users' pages by axe-core, in both colour schemes and on a phone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import pytest
from playwright.async_api import Page

from polydev.agent.login_state import login_reply
from polydev.agent.reply_types import LoginReply
from polydev.client.credentials_key import new_key
from polydev.controller.credential_encryption import keyring_of
from polydev.controller.entities import Session
from polydev.controller.store.credential_handovers import CredentialHandovers
from tests.browser import run_in_browser
from tests.web import (
    QUICK_TIMERS,
    Site,
    page_of,
    sign_in,
    sites,
    until_covered,
    until_shown,
    violations,
)

LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {
        "color_scheme": "light",
        "viewport": {"width": 390, "height": 844},
        "has_touch": True,
        "is_mobile": True,
    },
}


async def states_of_start(site: Site, page: Page) -> AsyncIterator[str]:
    await sign_in(page, site)
    yield "empty"
    failed = await site.session()
    await site.made.services.sessions.apply(failed.id, "fail", "no such image")
    session = await site.session()
    await site.made.services.credentials.store(session.user_id, "claude", b'{"a": 1}')
    await page.reload()
    yield "filled"
    await page.click("#log summary")
    await page.wait_for_selector("#log-rows .row")
    yield "log"
    await page.click("text=Start with Codex")
    await page.wait_for_selector("#start-problem:not([hidden])")
    yield "problem"
    await page.click(f"#end-{session.id}")
    yield "question"


async def states_of_session(site: Site, page: Page) -> AsyncIterator[str]:
    booting = await site.made.booting(site.screen)
    await sign_in(page, site)
    await page.goto(site.page_url(booting))
    await until_covered(page, "coming")
    yield "coming"
    await site.made.vms[booting.id].reach("services")
    await site.made.services.vms.ready(booting.vm_id)
    site.notify_followers()
    await until_shown(page)
    yield "screen"
    for panel in ("login", "clipboard", "share"):
        await page.click(f"#{panel}-button")
        yield panel
    async for state in _states_of_the_login(site, page, booting):
        yield state
    await page.click("#make-link-button")
    await page.wait_for_selector("#share-made:not([hidden])")
    yield "link"
    await page.click("#hide-button")
    yield "no bar"
    await page.click("#show-button")
    await page.click("#end-button")
    yield "question"
    await page.keyboard.press("Escape")
    async for state in _states_of_the_end(site, page, booting):
        yield state


async def _states_of_the_login(site: Site, page: Page, session: Session) -> AsyncIterator[str]:
    vm, sessions = site.made.vms[session.id], site.made.services.sessions
    vm.login = login_reply("claude", "failed", detail="no network")
    await page.click("#login-button")
    await page.click("#login-start-button")
    await page.wait_for_selector("#login-problem:not([hidden])")
    yield "failed login"
    waits = login_reply("claude", "waiting", "https://claude.example/oauth")
    vm.login = cast(LoginReply, {**waits, "device_code": "WXYZ-1234"})
    await page.click("#login-start-button")
    await page.wait_for_selector("#login-device:not([hidden])")
    yield "device code"
    waiting = await sessions.set_login(session.id, "waiting")
    services = site.made.services
    keys = keyring_of(services.settings.credentials_key)
    await CredentialHandovers(services.database, keys, 3600).hand_over(waiting, b'{"a":1}')
    site.notify_followers()
    await page.wait_for_selector("#login-completes:not([hidden])")
    yield "handed over"
    await page.click("#share-button")


async def _states_of_the_end(site: Site, page: Page, session: Session) -> AsyncIterator[str]:
    await page.evaluate("holdPauses()")
    site.made.vms[session.id].hang_up()
    await until_covered(page, "lost")
    yield "lost"
    await page.evaluate("releasePauses()")
    await until_covered(page, "given-up")
    yield "given up"
    await page.wait_for_selector("#countdown:not([hidden])")
    yield "countdown"
    await site.made.services.vms.fail(session.vm_id, "its process ended")
    site.notify_followers()
    await until_covered(page, "over")
    yield "over"
    await page.goto(f"{site.url}/session/{session.vm_id}")
    yield "no such session"


STATES = {"start": states_of_start, "session": states_of_session}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("states", STATES)
def test_user_pages_pass_axe_in_every_state(
    tmp_path: Path, packed_assets: Path, node_modules: Path, states: str, look: str
) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            limits = {"per_user": 1, "idle_seconds": 20}
            making = sites(tmp_path, packed_assets, session=limits, credentials_key=new_key())
            site = await stack.enter_async_context(making)
            given = {"reduced_motion": "reduce", **LOOKS[look]}
            looking = page_of(site.browser, expects_network_errors=True, **given)
            page = await stack.enter_async_context(looking)
            await page.add_init_script(QUICK_TIMERS)
            found = {
                state: wrong
                async for state in STATES[states](site, page)
                if (wrong := await violations(page, node_modules))
            }
            assert found == {}

    run_in_browser(scenario())

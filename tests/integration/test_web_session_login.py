"""The login of a session's tool beside its screen; what guests and tools say is text."""

from __future__ import annotations

from tests.driving import until
from tests.vms import FakeVm
from tests.web import (
    QUICK_TIMERS,
    Play,
    Site,
    open_session,
    page_of,
    until_covered,
    until_shown,
)

MARKUP = "<img src=x onerror='window.ran = 1'>"
LOGIN_URL = "https://claude.example/oauth"


async def until_started(vm: FakeVm) -> None:
    """The page says so before the VM has heard of it."""

    async def is_started() -> bool:
        return vm.logins == 1

    await until(is_started, "the start of the tool")


def test_the_login_of_the_tool_is_followed(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        vm = site.made.vms[session.id]
        async with page_of(site.browser) as page:
            await page.add_init_script(QUICK_TIMERS)
            await open_session(page, site, session)
            await until_shown(page)
            button = page.locator("#login-button")
            await button.click()
            await page.click("#login-start-button")
            await page.wait_for_selector("#login-button[data-state=starting]")
            await until_started(vm)
            vm.login = {**vm.login, "status": "waiting", "url": LOGIN_URL}
            await page.wait_for_selector("#login-button[data-state=waiting]")
            assert "is open in the VM" in await page.inner_text("#login-text")
            await page.reload()
            await page.wait_for_selector("#login-button[data-state=waiting]")
            vm.login = {**vm.login, "status": "done", "url": None}
            await page.wait_for_selector("#login-button[data-state=done]")
            # Its credentials are not handed over yet: nobody drives here.
            assert (await site.made.services.sessions.get(session.id)).state == "oauth_pending"

    play(scenario)


def test_a_login_that_fails_has_the_tools_words_and_can_be_tried_again(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        vm = site.made.vms[session.id]
        vm.login = {"provider": "claude", "status": "failed", "url": None, "detail": "no network"}
        async with page_of(site.browser, expects_network_errors=True) as page:
            await open_session(page, site, session)
            await until_shown(page)
            await page.click("#login-button")
            await page.click("#login-start-button")
            await page.wait_for_selector("#login-problem:has-text('no network')")
            await page.click("text=Try again")
            await page.wait_for_selector("#login-button[data-state=starting]")
            await until_started(vm)

    play(scenario)


def test_what_a_guest_or_a_tool_says_is_text(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        vm = site.made.vms[session.id]
        vm.login = {"provider": "claude", "status": "failed", "url": None, "detail": MARKUP}
        async with page_of(site.browser, expects_network_errors=True) as page:
            await open_session(page, site, session)
            await until_shown(page)
            await page.click("#login-button")
            await page.click("#login-start-button")
            await page.wait_for_selector("#login-problem:not([hidden])")
            assert MARKUP in await page.inner_text("#login-problem")
            await site.screen.copy(MARKUP)
            await page.wait_for_selector("#status-text:has-text('copied in the VM')")
            await site.made.services.vms.fail(session.vm_id, MARKUP)
            site.ring()
            await until_covered(page, "over", MARKUP)
            await page.goto(site.url)
            assert MARKUP in await page.inner_text("#sessions")
            assert await page.evaluate("window.ran") is None

    play(scenario)

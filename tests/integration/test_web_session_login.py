"""The login of a session's tool beside its screen; texts of guests and tools are escaped."""

from __future__ import annotations

from typing import cast

from polydev.agent.login_state import login_reply
from polydev.agent.reply_types import LoginReply
from polydev.client.credentials_key import new_key
from polydev.controller.credential_encryption import keyring_of
from polydev.controller.entities import Session
from polydev.controller.store.credential_handovers import NO_KEY, CredentialHandovers
from polydev.controller.store.credential_injections import CredentialInjections
from polydev.controller.store.sessions import NewSession
from tests.driving import until
from tests.vms import IMAGE_DIGEST, FakeVm
from tests.web import (
    QUICK_TIMERS,
    Play,
    Site,
    open_session,
    page_of,
    until_covered,
    until_message,
    until_shown,
)

MARKUP = "<img src=x onerror='window.ran = 1'>"
LOGIN_URL = "https://claude.example/oauth"
CREDENTIALS = b'{"a":1}'


def handovers_of(site: Site, complete_after_seconds: float = 3600) -> CredentialHandovers:
    """Return the object for handovers of credentials, since the site has no driver."""
    services = site.made.services
    keys = keyring_of(services.settings.credentials_key)
    return CredentialHandovers(services.database, keys, complete_after_seconds)


async def session_logging_in(site: Site) -> Session:
    """A session whose tool waits for its user."""
    session = await site.session()
    site.made.vms[session.id].login = login_reply("claude", "waiting", LOGIN_URL)
    return await site.made.services.sessions.set_login(session.id, "waiting")


async def until_started(vm: FakeVm) -> None:
    """Wait until the VM's login has started, which the page shows earlier."""

    async def is_started() -> bool:
        return vm.logins == 1

    await until(is_started, "the start of the tool")


def test_login_of_tool_is_followed(play: Play) -> None:
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
            vm.login = login_reply("claude", "waiting", LOGIN_URL)
            await page.wait_for_selector("#login-button[data-state=waiting]")
            assert "is open in the VM" in await page.inner_text("#login-text")
            await page.reload()
            await page.wait_for_selector("#login-button[data-state=waiting]")
            vm.login = {**vm.login, "status": "done", "url": None}
            await page.wait_for_selector("#login-button[data-state=done]")
            # Its credentials are not handed over yet, since there is no driver.
            assert (await site.made.services.sessions.get(session.id)).state == "oauth_pending"

    play(scenario)


def test_failed_login_shows_tool_message_and_can_be_retried(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        vm = site.made.vms[session.id]
        vm.login = login_reply("claude", "failed", detail="no network")
        async with page_of(site.browser, expects_network_errors=True) as page:
            await open_session(page, site, session)
            await until_shown(page)
            await page.click("#login-button")
            await page.click("#login-start-button")
            await page.wait_for_selector("#login-problem:has-text('no network')")
            await page.get_by_role("button", name="Try again").click()
            await page.wait_for_selector("#login-button[data-state=starting]")
            await until_started(vm)

    play(scenario)


def test_device_code_is_shown_and_pasted_code_reaches_tool(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await session_logging_in(site)
        vm = site.made.vms[session.id]
        vm.login = cast(LoginReply, {**vm.login, "device_code": "WXYZ-1234"})
        async with page_of(site.browser, expects_network_errors=True) as page:
            await page.add_init_script(QUICK_TIMERS)
            await open_session(page, site, session)
            await page.wait_for_selector("#login-device:not([hidden])")
            # Else the page may hear that no code is wanted any more, and takes its field away.
            await page.evaluate("holdPauses()")
            assert await page.input_value("#device-code") == "WXYZ-1234"
            assert await page.get_attribute("#device-page", "href") == LOGIN_URL
            assert "Any other browser" in await page.inner_text("#login-text")
            await page.fill("#login-code", " 4/0AbCD#Zm9v ")
            await page.keyboard.press("Enter")
            await until_message(page, "has received the code")
            assert vm.typed == ["4/0AbCD#Zm9v"]
            assert await page.input_value("#login-code") == ""
            vm.login = login_reply("claude", "starting")
            await page.fill("#login-code", "again")
            await page.keyboard.press("Enter")
            await page.wait_for_selector("#notice:has-text('no login is waiting for a code')")
            assert await page.input_value("#login-code") == "again"

    play(scenario)


def test_handover_ends_session_with_receipt(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await session_logging_in(site)
        async with page_of(site.browser) as page:
            await open_session(page, site, session)
            await page.wait_for_selector("#login-button[data-state=waiting]")
            done = await handovers_of(site).hand_over(session, CREDENTIALS)
            assert done.receipt is not None
            site.notify_followers()
            await page.wait_for_selector("#login-button[data-state=handed_over]")
            told = await page.inner_text("#login-receipt")
            assert "stored them, encrypted" in told
            assert done.receipt.sha256[:16] in told
            await page.wait_for_selector("#login-clock:text-matches('^(60|59):')")
            await site.made.services.sessions.apply(session.id, "complete")
            site.notify_followers()
            await until_covered(page, "over", "The session is complete", "stored them, encrypted")

    play(scenario, credentials_key=new_key())


def test_credentials_stay_in_vm_if_host_cannot_store_them(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await session_logging_in(site)
        async with page_of(site.browser) as page:
            await open_session(page, site, session)
            await page.wait_for_selector("#login-button[data-state=waiting]")
            await handovers_of(site).finish_without(session.id, NO_KEY)
            site.notify_followers()
            await page.wait_for_selector("#login-button[data-state=done]")
            await page.wait_for_selector("#login-problem:has-text('no key to seal them with')")
            assert await page.is_hidden("#login-completes")

    play(scenario)


def test_refused_stored_credentials_lead_to_login(play: Play) -> None:
    async def scenario(site: Site) -> None:
        services, user_id = site.made.services, site.made.users["user"]
        await services.credentials.store(user_id, "claude", CREDENTIALS)
        new = NewSession(user_id, "claude", IMAGE_DIGEST, use_stored=True, holds_alone=True)
        session = await site.session(new=new)
        keys = keyring_of(services.settings.credentials_key)
        async with page_of(site.browser) as page:
            await open_session(page, site, session)
            await page.wait_for_selector("#login-button[data-state=injecting]")
            why = "the tool says: token expired"
            await CredentialInjections(services.database, keys).refused(session.id, why, tried=True)
            site.notify_followers()
            await page.wait_for_selector("#login-problem:has-text('token expired')")
            await page.click("#login-start-button")
            await page.wait_for_selector("#login-button[data-state=starting]")

    play(scenario, credentials_key=new_key())


def test_texts_of_guests_and_tools_are_escaped(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        vm = site.made.vms[session.id]
        vm.login = login_reply("claude", "failed", detail=MARKUP)
        async with page_of(site.browser, expects_network_errors=True) as page:
            await open_session(page, site, session)
            await until_shown(page)
            await page.click("#login-button")
            await page.click("#login-start-button")
            await page.wait_for_selector("#login-problem:not([hidden])")
            assert MARKUP in await page.inner_text("#login-problem")
            await site.screen.copy(MARKUP)
            await until_message(page, "copied in the VM")
            await site.made.services.vms.fail(session.vm_id, MARKUP)
            site.notify_followers()
            await until_covered(page, "over", MARKUP)
            await page.goto(site.url)
            assert MARKUP in await page.inner_text("#sessions")
            assert await page.evaluate("window.ran") is None

    play(scenario)

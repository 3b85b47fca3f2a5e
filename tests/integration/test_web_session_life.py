"""The life of a session as its page tells it: boots, breaks, restarts, ends, and who may look."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import ConsoleMessage, Page, WebSocket

from polydev.controller.app import create_app
from polydev.controller.model import Session, now
from polydev.vm.stages import Stage
from tests.driving import until
from tests.relays import serving
from tests.web import (
    CANVAS,
    QUICK_TIMERS,
    Site,
    page_of,
    sign_in,
    sites,
    until_covered,
    until_shown,
    wires,
)

DIED = "the VM's process ended: signal 9"
BOOT: dict[Stage, str] = {
    "kernel": "kernel has started",
    "init": "operating system is starting",
    "services": "The browser is starting",
}
MARKUP = "<img src=x onerror='window.ran = 1'>"
# As if the computer had slept for two minutes, and was opened again.
SLEEP = """() => {
    const now = Date.now;
    Date.now = () => now() + 120_000;
    document.dispatchEvent(new Event("visibilitychange"));
}"""
LOGIN_URL = "https://claude.example/oauth"

Play = Callable[..., None]


@pytest.fixture
def play(tmp_path: Path, packed_assets: Path) -> Play:
    async def played(scenario: Callable[[Site], Awaitable[None]], **changes: Any) -> None:
        async with sites(tmp_path, packed_assets, **changes) as site:
            await scenario(site)

    return lambda scenario, **changes: asyncio.run(played(scenario, **changes))


async def open_session(page: Page, site: Site, session: Session, url: str | None = None) -> None:
    await sign_in(page, site, url=url)
    await page.goto(f"{url or site.url}/session/{session.id}")


async def until_text(page: Page, text: str) -> None:
    await page.wait_for_selector(f"#cover article:has-text({text!r})")


def test_a_boot_is_followed_until_the_screen_is_seen(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.made.booting(site.screen)
        vms, vm = site.made.services.vms, site.made.vms[session.id]
        async with page_of(site.browser) as page:
            await open_session(page, site, session)
            await until_text(page, "Starting the VM.")
            for stage, words in BOOT.items():
                await vm.reach(stage)
                await vms.stage_reached(session.vm_id, stage)
                site.ring()
                await until_text(page, words)
            assert await page.get_attribute("#cover-progress", "value") is not None
            await vms.ready(session.vm_id)
            site.ring()
            await until_shown(page)

    play(scenario)


def test_a_session_that_waits_is_told_its_place_and_why(play: Play) -> None:
    async def scenario(site: Site) -> None:
        services = site.made.services
        session = await site.made.waiting()
        words: dict[str, object] = {"place": 3, "because": "the host's memory is short"}
        await services.sessions.tell(session.id, "queued", words)
        async with page_of(site.browser) as page:
            await open_session(page, site, session)
            await until_text(page, "Waiting: the host's memory is short.")
            await until_text(page, "Your place in the queue: 3.")

    play(scenario)


def test_a_reload_finds_the_same_screen(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        async with page_of(site.browser) as page:
            await open_session(page, site, session)
            await until_shown(page)
            await page.reload()
            await until_shown(page)

    play(scenario)


def test_a_cut_network_is_told_and_mends_itself(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        async with (
            wires(site.made.port) as wire,
            page_of(site.browser, expects_network_errors=True) as page,
        ):
            await open_session(page, site, session, wire.url)
            await until_shown(page)
            wire.cut()
            words = await until_covered(page, "lost")
            assert "Check your network" in words
            assert "Next attempt in" in words
            await until_text(page, "(2 of 5)")
            await wire.mend()
            await until_shown(page)

    play(scenario)


def test_try_now_waits_for_nothing(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        async with (
            wires(site.made.port) as wire,
            page_of(site.browser, expects_network_errors=True) as page,
        ):
            await open_session(page, site, session, wire.url)
            await until_shown(page)
            wire.cut()
            await until_text(page, "(4 of 5)")  # the next attempt is 8 s away
            await wire.mend()
            await page.click("text=Try now")
            await until_shown(page)

    play(scenario)


def test_a_network_that_is_back_is_used_at_once(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        async with (
            wires(site.made.port) as wire,
            page_of(site.browser, expects_network_errors=True) as page,
        ):
            await open_session(page, site, session, wire.url)
            await until_shown(page)
            await page.context.set_offline(True)
            wire.cut()
            await until_text(page, "(3 of 5)")
            await wire.mend()
            await page.context.set_offline(False)
            await until_shown(page)

    play(scenario)


def test_after_sleep_the_page_connects_anew_at_once(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        async with page_of(site.browser) as page:
            sockets: list[WebSocket] = []
            page.on("websocket", lambda socket: sockets.append(socket))
            await open_session(page, site, session)
            await until_shown(page)
            await page.evaluate(SLEEP)

            async def is_new() -> bool:
                return len(sockets) == 2

            await until(is_new, "another connection")
            await until_shown(page)
            assert sockets[0].is_closed()

    play(scenario)


def test_a_restarted_controller_shows_the_same_screen(play: Play, packed_assets: Path) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        async with AsyncExitStack() as stack:
            wire = await stack.enter_async_context(wires(site.made.port))
            page = await stack.enter_async_context(
                page_of(site.browser, expects_network_errors=True)
            )
            await open_session(page, site, session, wire.url)
            await until_shown(page)
            await site.made.stop()
            words = await until_covered(page, "lost")
            assert "The service restarts; connect again." in words
            made = site.made
            app = create_app(made.services.settings, made.host.hypervisor, packed_assets)
            _, wire.to_port = await stack.enter_async_context(serving(app))
            await until_shown(page)
            await page.close()

    play(scenario)


def test_after_the_last_attempt_the_user_has_the_word(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        vm = site.made.vms[session.id]
        async with page_of(site.browser) as page:
            await page.add_init_script(QUICK_TIMERS)
            await open_session(page, site, session)
            await until_shown(page)
            vm.hang_up()
            words = await until_covered(page, "given-up")
            assert "The VM's screen does not answer." in words
            assert "has stopped trying" in words
            await vm.listen(5901, vm.serve_rfb)
            await page.click("text=Connect again")
            await until_shown(page)

    play(scenario)


def test_a_vm_that_dies_has_its_reason_and_a_way_to_begin_anew(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        async with page_of(site.browser) as page:
            await open_session(page, site, session)
            await until_shown(page)
            site.made.vms[session.id].die()
            await site.made.services.vms.fail(session.vm_id, DIED)
            site.ring()
            words = await until_covered(page, "over")
            assert "The VM failed" in words
            assert "The VM's process ended: signal 9." in words
            await page.click("text=Start a new session")
            await page.wait_for_url(lambda url: "/session/" in url and session.id not in url)
            await until_covered(page, "coming")
            newest = (await site.made.services.sessions.list(limit=1))[0]
            assert (newest.provider, newest.user_id) == (session.provider, session.user_id)

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
            assert MARKUP in await until_covered(page, "over")
            await page.goto(site.url)
            assert MARKUP in await page.inner_text("#sessions")
            assert await page.evaluate("window.ran") is None

    play(scenario)


def test_a_page_that_is_seen_is_use_of_its_session(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        async with page_of(site.browser) as page:
            await open_session(page, site, session)
            await until_shown(page)
            async with page.expect_response("**/heartbeat") as told:
                pass
            assert (await told.value).status == 200

    play(scenario, session={"idle_seconds": 8})


def test_a_session_is_ended_after_a_question(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        sessions = site.made.services.sessions
        async with page_of(site.browser) as page:
            await open_session(page, site, session)
            await until_shown(page)
            await page.click("#end-button")
            await page.click("dialog >> text=Back")
            assert (await sessions.get(session.id)).is_live
            await page.click("#end-button")
            await page.click("dialog >> text=End session")
            assert "The session was ended" in await until_covered(page, "over")
            assert (await sessions.get(session.id)).state == "terminated"

    play(scenario)


def test_a_session_without_use_ends_unless_its_user_stays(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        sessions = site.made.services.sessions
        async with page_of(site.browser) as page:
            await page.add_init_script(QUICK_TIMERS)
            await open_session(page, site, session)
            await until_shown(page)
            site.made.vms[session.id].hang_up()
            await until_covered(page, "given-up")
            await page.click("#stay-button")
            await page.wait_for_selector("#countdown", state="hidden")
            kept = await sessions.get(session.id)
            assert kept.heartbeat_at is not None
            assert (kept.expires_at - kept.heartbeat_at).total_seconds() == 8
            await page.wait_for_selector("#countdown:has-text('No use')")

            async def has_expired() -> bool:
                return bool(await sessions.expire_due())

            await until(has_expired, "the end")
            site.ring()
            words = await until_covered(page, "over")
            assert "The session has expired" in words
            assert "No viewer and no heartbeat for 8 s." in words

    play(scenario, session={"per_user": 9, "idle_seconds": 8})


def test_the_longest_life_is_told_before_and_cannot_be_longer(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        async with page_of(site.browser) as page:
            await open_session(page, site, session)
            await until_shown(page)
            await page.wait_for_selector("#countdown:has-text('longest time')")
            assert await page.is_hidden("#stay-button")
            left = await page.inner_text("#countdown-clock")
            minutes, seconds = map(int, left.split(":"))
            ends = (session.created_at - now()).total_seconds() + 280
            assert minutes * 60 + seconds == pytest.approx(ends, abs=5)
            await page.click("#later-button")
            await page.wait_for_selector("#countdown", state="hidden")

    play(scenario, session={"max_seconds": 280})


def test_a_link_lets_one_person_look_and_do_nothing_else(play: Play) -> None:
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
                assert "opened before" in await until_covered(late, "refused")
                assert await late.inner_text("#status-text") == "No access"

    play(scenario)


async def link_to(site: Site, session: Session) -> str:
    """Of the session's page, as a front end gets it for its user."""
    async with httpx.AsyncClient(base_url=site.url, trust_env=False) as client:
        answer = await client.post(
            f"/api/auth/session/{session.id}/tickets",
            json={"purpose": "page"},
            headers={"Authorization": f"Bearer {site.made.tokens['user']}"},
        )
    return site.url + str(answer.json()["url"])


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


def tells_of_framing(message: ConsoleMessage) -> bool:
    return "frame-ancestors" in message.text and "blocked" in message.text


@pytest.mark.parametrize("is_configured", [True, False])
def test_only_a_configured_site_may_frame_a_session(
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
                async with page.expect_console_message(tells_of_framing):
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

    asyncio.run(scenario())


def test_a_copied_address_shows_another_user_nothing(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        async with page_of(site.browser, expects_network_errors=True) as page:
            await page.goto(site.page_url(session))
            await page.wait_for_url(lambda url: "/login?next=" in url)
            await sign_in(page, site, "other user")
            answer = await page.goto(site.page_url(session))
            assert answer is not None
            assert answer.status == 403
            assert "another user's" in await page.inner_text("main")

    play(scenario)


def test_the_login_of_the_tool_is_followed(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        vm = site.made.vms[session.id]

        async def was_started() -> bool:
            return vm.logins > 0

        async with page_of(site.browser) as page:
            await page.add_init_script(QUICK_TIMERS)
            await open_session(page, site, session)
            await until_shown(page)
            button = page.locator("#login-button")
            await button.click()
            await page.click("#login-start-button")
            await page.wait_for_selector("#login-button[data-state=starting]")
            await until(was_started, "the question that starts the tool")
            assert vm.logins == 1
            vm.login = {**vm.login, "status": "waiting", "url": LOGIN_URL}
            await page.wait_for_selector("#login-button[data-state=waiting]")
            assert "is open in the VM" in await page.inner_text("#login-text")
            await page.reload()
            await page.wait_for_selector("#login-button[data-state=waiting]")
            vm.login = {**vm.login, "status": "done", "url": None}
            await page.wait_for_selector("#login-button[data-state=done]")
            assert (await site.made.services.sessions.get(session.id)).state == "authenticated"

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
            assert vm.logins == 1

    play(scenario)

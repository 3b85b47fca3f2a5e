"""A session's page when the network breaks, the controller restarts, or the computer slept."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from playwright.async_api import Route, WebSocket

from polydev.controller.app import create_app
from tests.driving import until
from tests.relays import serving
from tests.web import (
    QUICK_TIMERS,
    Play,
    Site,
    open_session,
    page_of,
    until_covered,
    until_shown,
    until_text,
)
from tests.wires import wires

# Takes a controller for silent after a second and a half.
ANSWER_SOON = """() => {
    const timeout = AbortSignal.timeout;
    AbortSignal.timeout = (milliseconds) => timeout.call(AbortSignal, milliseconds / 20);
}"""
# Acts as a computer that wakes after two minutes of sleep.
SLEEP = """() => {
    const now = Date.now;
    Date.now = () => now() + 120_000;
    document.dispatchEvent(new Event("visibilitychange"));
}"""


def test_reload_shows_the_same_screen(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        async with page_of(site.browser) as page:
            await open_session(page, site, session)
            await until_shown(page)
            await page.reload()
            await until_shown(page)

    play(scenario)


def test_page_reconnects_after_network_cut(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        async with (
            wires(site.made.port) as wire,
            page_of(site.browser, expects_network_errors=True) as page,
        ):
            await page.add_init_script(QUICK_TIMERS)
            await open_session(page, site, session, wire.url)
            await until_shown(page)
            await page.evaluate("holdPauses()")
            wire.cut()
            await until_covered(page, "lost", "Check your network", "Next attempt in", "(1 of 5)")
            await page.evaluate("endPauses()")
            await until_text(page, "(2 of 5)")
            await wire.mend()
            await page.evaluate("releasePauses()")
            await until_shown(page)

    play(scenario)


def test_failed_session_requests_are_retried(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        failing = iter(range(3))

        async def fail_at_first(route: Route) -> None:
            if next(failing, None) is None:
                await route.continue_()
            else:
                await route.fulfill(status=503, json={"detail": "the database is busy"})

        async with page_of(site.browser, expects_network_errors=True) as page:
            await page.route(f"**/api/auth/session/{session.id}", fail_at_first)
            await open_session(page, site, session)
            await until_shown(page)
        assert next(failing, None) is None

    play(scenario)


def test_page_notices_a_network_that_is_silent(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        async with wires(site.made.port) as wire, page_of(site.browser) as page:
            await open_session(page, site, session, wire.url)
            await until_shown(page)
            await page.evaluate(ANSWER_SOON)
            wire.silence()
            await until_covered(page, "lost", "Check your network", "(1 of 5)")
            # The next attempt gets no answer either.
            await until_covered(page, "lost", "does not answer", "(2 of 5)")
            wire.flow()
            await until_shown(page)

    play(scenario, session={"idle_seconds": 8})


@pytest.mark.parametrize("kind", ["novnc/core/display.js", "session/session.css"])
def test_page_loads_again_after_a_script_or_style_failed(play: Play, kind: str) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        failing = iter(range(2))

        async def fail_at_first(route: Route) -> None:
            if next(failing, None) is None:
                await route.continue_()
            else:
                await route.abort("connectionreset")

        async with page_of(site.browser, expects_network_errors=True) as page:
            await page.route(f"**/{kind}", fail_at_first)
            await open_session(page, site, session)
            await until_shown(page)
            await page.wait_for_function("() => history.state?.loadFailures === 0")
        assert next(failing, None) is None

    play(scenario)


def test_page_whose_scripts_keep_failing_offers_to_load_it_again(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        async with page_of(site.browser, expects_network_errors=True) as page:
            await page.route("**/session/bar.js", lambda route: route.abort("connectionreset"))
            await open_session(page, site, session)
            await page.wait_for_selector("#notice:has-text('could not be loaded completely')")
            await page.unroute("**/session/bar.js")
            await page.click("#notice button")
            await until_shown(page)

    play(scenario)


def test_try_now_reconnects_at_once(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        async with (
            wires(site.made.port) as wire,
            page_of(site.browser, expects_network_errors=True) as page,
        ):
            await page.add_init_script(QUICK_TIMERS)
            await open_session(page, site, session, wire.url)
            await until_shown(page)
            await page.evaluate("holdPauses()")
            wire.cut()
            await until_text(page, "(1 of 5)")
            await page.evaluate("endPauses()")
            await until_text(page, "(2 of 5)")
            await page.click("text=Try now")
            await until_text(page, "(1 of 5)")  # the attempt was made, and counts anew
            await wire.mend()
            await page.click("text=Try now")
            await until_shown(page)

    play(scenario)


def test_page_reconnects_at_once_when_browser_is_online(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        async with (
            wires(site.made.port) as wire,
            page_of(site.browser, expects_network_errors=True) as page,
        ):
            await page.add_init_script(QUICK_TIMERS)
            await open_session(page, site, session, wire.url)
            await until_shown(page)
            await page.evaluate("holdPauses()")
            await page.context.set_offline(True)
            wire.cut()
            await until_text(page, "(1 of 5)")
            await page.evaluate("endPauses()")
            await until_text(page, "(2 of 5)")
            await page.context.set_offline(False)
            await until_text(page, "(1 of 5)")
            await wire.mend()
            await page.evaluate("releasePauses()")
            await until_shown(page)

    play(scenario)


def test_page_reconnects_at_once_after_sleep(play: Play) -> None:
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

            async def has_left() -> bool:
                return sockets[0].is_closed()

            await until(is_new, "another connection")
            await until_shown(page)
            await until(has_left, "the end of the first connection")

    play(scenario)


def test_page_reconnects_after_controller_restart(play: Play, packed_assets: Path) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        async with AsyncExitStack() as stack:
            wire = await stack.enter_async_context(wires(site.made.port))
            page = await stack.enter_async_context(
                page_of(site.browser, expects_network_errors=True)
            )
            await page.add_init_script(QUICK_TIMERS)
            await open_session(page, site, session, wire.url)
            await until_shown(page)
            await page.evaluate("holdPauses()")
            await site.made.stop()
            await until_covered(page, "lost", "The service restarts; connect again.")
            made = site.made
            app = create_app(made.services.settings, made.host.hypervisor, packed_assets)
            _, wire.to_port = await stack.enter_async_context(serving(app))
            await page.evaluate("releasePauses()")
            await until_shown(page)
            await page.close()

    play(scenario)


def test_page_offers_reconnect_after_last_attempt(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        vm = site.made.vms[session.id]
        async with page_of(site.browser) as page:
            await page.add_init_script(QUICK_TIMERS)
            await open_session(page, site, session)
            await until_shown(page)
            vm.hang_up()
            await until_covered(
                page, "given-up", "The VM's screen does not answer.", "has stopped trying"
            )
            await vm.listen(5901, vm.serve_rfb)
            await page.get_by_role("button", name="Connect again").click()
            await until_shown(page)

    play(scenario)

"""The states of a session on its page: it boots, is used, fails, expires, is ended."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
import sqlalchemy as sa
from playwright.async_api import Route

from polydev.controller.entities import Session, now
from polydev.controller.store import tables
from polydev.vm.boot_stages import Stage
from tests.driving import until
from tests.web import (
    PATIENCE_MS,
    QUICK_TIMERS,
    Play,
    Site,
    open_session,
    page_of,
    until_covered,
    until_shown,
    until_text,
)

DIED = "the VM's process ended: signal 9"
# Counts the answers to heartbeats once the page has read them and done what follows.
COUNT_HEARTBEATS = """
const json = Response.prototype.json;
window.answersRead = 0;
Response.prototype.json = async function () {
    const body = await json.call(this);
    if (this.url.endsWith("/heartbeat")) setTimeout(() => { window.answersRead += 1; });
    return body;
};
"""
BOOT: dict[Stage, str] = {
    "kernel": "kernel has started",
    "init": "operating system is starting",
    "services": "The browser is starting",
}


async def end_in(site: Site, session: Session, seconds: float) -> None:
    """Let the session end then, unless somebody uses it."""
    services = site.made.services
    ends = {"expires_at": now() + timedelta(seconds=seconds)}
    whose = tables.sessions.c.id == session.id
    async with services.database.writing() as connection:
        await connection.execute(sa.update(tables.sessions).where(whose).values(**ends))
    # With any event the page reads the session again.
    await services.sessions.add_news(session.id, "healthy", {})
    site.notify_followers()


def test_page_follows_boot_until_screen_is_shown(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.made.booting(site.screen)
        vms, vm = site.made.services.vms, site.made.vms[session.id]
        async with page_of(site.browser) as page:
            await open_session(page, site, session)
            await until_text(page, "Starting the VM.")
            for stage, words in BOOT.items():
                await vm.reach(stage)
                await vms.stage_reached(session.vm_id, stage)
                site.notify_followers()
                await until_text(page, words)
            assert await page.get_attribute("#cover-progress", "value") is not None
            await vms.ready(session.vm_id)
            site.notify_followers()
            await until_shown(page)

    play(scenario)


def test_queued_session_shows_place_and_reason(play: Play) -> None:
    async def scenario(site: Site) -> None:
        services = site.made.services
        session = await site.made.waiting()
        words: dict[str, object] = {"place": 3, "because": "the host is short of memory"}
        await services.sessions.add_news(session.id, "queued", words)
        async with page_of(site.browser) as page:
            await open_session(page, site, session)
            await until_text(page, "Waiting: the host is short of memory.")
            await until_text(page, "Your place in the queue: 3.")

    play(scenario)


def test_failed_vm_shows_reason_and_start_button(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        async with page_of(site.browser) as page:
            await page.add_init_script(QUICK_TIMERS)
            await open_session(page, site, session)
            await until_shown(page)
            # The page hears of the end before it connects again, which would be refused.
            await page.evaluate("holdPauses()")
            site.made.vms[session.id].die()
            await site.made.services.vms.fail(session.vm_id, DIED)
            site.notify_followers()
            await until_covered(page, "over", "The VM failed", "The VM's process ended: signal 9.")
            await page.click("text=Start a new session")
            await page.wait_for_url(lambda url: "/session/" in url and session.id not in url)
            await until_covered(page, "coming")
            newest = (await site.made.services.sessions.list(limit=1))[0]
            assert (newest.provider, newest.user_id) == (session.provider, session.user_id)

    play(scenario)


def test_visible_page_sends_heartbeats(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        async with page_of(site.browser) as page:
            await open_session(page, site, session)
            await until_shown(page)
            async with page.expect_response("**/heartbeat") as told:
                pass
            assert (await told.value).status == 200

    play(scenario, session={"idle_seconds": 8})


def test_late_answer_does_not_revive_a_session_that_has_ended(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        is_asked, may_answer = asyncio.Event(), asyncio.Event()

        async def answer_late(route: Route) -> None:
            answer = await route.fetch()
            is_asked.set()
            await may_answer.wait()
            await route.fulfill(response=answer)

        async with page_of(site.browser, expects_network_errors=True) as page:
            await page.add_init_script(COUNT_HEARTBEATS)
            await page.route("**/heartbeat", answer_late)
            await open_session(page, site, session)
            await until_shown(page)
            await asyncio.wait_for(is_asked.wait(), PATIENCE_MS / 1000)
            await site.made.services.vms.fail(session.vm_id, DIED)
            site.notify_followers()
            await until_covered(page, "over", "The VM failed")
            assert await page.evaluate("answersRead") == 0
            may_answer.set()
            await page.wait_for_function("() => answersRead > 0")
            assert await page.get_attribute("#cover", "data-kind") == "over"

    play(scenario, session={"idle_seconds": 8})


def test_session_ends_after_confirmation(play: Play) -> None:
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
            await until_covered(page, "over", "The session was ended")
            assert (await sessions.get(session.id)).state == "terminated"

    play(scenario)


def test_idle_session_shows_countdown_and_stay_button(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        sessions = site.made.services.sessions
        async with page_of(site.browser) as page:
            await page.add_init_script(QUICK_TIMERS)
            await open_session(page, site, session)
            await until_shown(page)
            site.made.vms[session.id].hang_up()
            await until_covered(page, "given-up")
            assert await page.is_hidden("#countdown")
            await end_in(site, session, 302)  # the countdown begins at 300
            await page.click("#stay-button")
            await page.wait_for_selector("#countdown", state="hidden")
            kept = await sessions.get(session.id)
            assert kept.heartbeat_at is not None
            assert (kept.expires_at - kept.heartbeat_at).total_seconds() == 600
            await end_in(site, session, 302)
            await page.wait_for_selector("#countdown:has-text('seems unused')")
            await end_in(site, session, 0)

            async def has_expired() -> bool:
                return bool(await sessions.expire_due())

            await until(has_expired, "the end")
            site.notify_followers()
            await until_covered(
                page, "over", "The session has expired", "No viewer and no heartbeat for 600 s."
            )

    play(scenario, session={"per_user": 9, "idle_seconds": 600})


def test_maximum_length_shows_countdown_without_stay_button(play: Play) -> None:
    async def scenario(site: Site) -> None:
        session = await site.session()
        async with page_of(site.browser) as page:
            await open_session(page, site, session)
            await until_shown(page)
            await page.wait_for_selector("#countdown:has-text('maximum length')")
            assert await page.is_hidden("#stay-button")
            left = await page.inner_text("#countdown-clock")
            minutes, seconds = map(int, left.split(":"))
            ends = (session.created_at - now()).total_seconds() + 280
            # The page learns the host's time from an answer, which on a busy machine comes late.
            assert minutes * 60 + seconds == pytest.approx(ends, abs=30)
            await page.click("#later-button")
            await page.wait_for_selector("#countdown", state="hidden")

    play(scenario, session={"max_seconds": 280})

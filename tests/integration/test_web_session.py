"""A session's page in a real browser, with a real VNC server: display and typing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page

from polydev.controller.entities import Session
from tests.browser import run_in_browser
from tests.driving import until
from tests.web import (
    CANVAS,
    Play,
    Site,
    page_of,
    picture,
    sign_in,
    sites,
    until_message,
    until_other_picture,
    until_shown,
)
from tests.xscreen import HEIGHT, WIDTH, Typed

TEXT = "Grüße, wörld"
CLIPBOARD = ["clipboard-read", "clipboard-write"]
NO_CLIPBOARD = "() => { navigator.clipboard.writeText = () => Promise.reject(new Error()); }"

Scenario = Callable[[Site, Session, Page, Typed], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path, packed_assets: Path) -> Play:
    """Play a scenario on the page of a session whose screen is a terminal."""

    async def played(scenario: Scenario, **context: Any) -> None:
        async with sites(tmp_path, packed_assets) as site:
            typed = site.screen.terminal()
            session = await site.session()
            async with page_of(site.browser, **context) as page:
                await sign_in(page, site)
                await page.goto(site.page_url(session))
                await until_shown(page)
                await typed.began()
                await scenario(site, session, page, typed)

    return lambda scenario, **context: run_in_browser(played(scenario, **context))


def test_typed_keys_are_shown_and_reach_the_vm(play: Play) -> None:
    async def scenario(_site: Site, _session: Session, page: Page, typed: Typed) -> None:
        before = await picture(page)
        await page.keyboard.type("echo Hello 42!")
        await until_other_picture(page, before)
        await page.keyboard.press("Enter")
        await typed.until("echo Hello 42!\n")

    play(scenario)


def test_click_reaches_the_vm(play: Play) -> None:
    async def scenario(site: Site, _session: Session, page: Page, typed: Typed) -> None:
        site.screen.start("stdbuf", "-oL", "xinput", "test-xi2", "--root")

        async def clicked() -> bool:
            await page.locator(CANVAS).click(position={"x": 300, "y": 200})
            return "(RawButtonPress)" in site.screen.said("stdbuf")

        await until(clicked, "a click")

    play(scenario)


def test_ctrl_v_pastes_text_into_the_vm(play: Play) -> None:
    async def scenario(site: Site, _session: Session, page: Page, typed: Typed) -> None:
        await page.evaluate("text => navigator.clipboard.writeText(text)", TEXT)
        for times in (1, 2):
            await page.keyboard.press("Control+v")
            # The VM's program asks for the text when it pastes; later keys do not wait for that.
            await typed.until(TEXT * times)
        await page.keyboard.type("x")
        await typed.until(f"{TEXT}{TEXT}x")
        assert await site.screen.pasted() == TEXT

    play(scenario, permissions=CLIPBOARD)


def test_text_copied_in_vm_reaches_user_clipboard(play: Play) -> None:
    async def scenario(site: Site, _session: Session, page: Page, _typed: Typed) -> None:
        await site.screen.copy(TEXT)
        await until_message(page, "is in your clipboard")
        assert await page.evaluate("navigator.clipboard.readText()") == TEXT

    play(scenario, permissions=CLIPBOARD)


def test_clipboard_panel_sends_and_receives_text(play: Play) -> None:
    async def scenario(site: Site, _session: Session, page: Page, _typed: Typed) -> None:
        await page.click("#clipboard-button")
        await page.fill("#outgoing", TEXT)
        await page.click("#send-button")

        async def is_there() -> bool:
            return await site.screen.pasted() == TEXT

        await until(is_there, "the text in the VM")
        await page.evaluate(NO_CLIPBOARD)
        await site.screen.copy("from the VM")
        await until_message(page, "Open the clipboard")
        assert await page.input_value("#incoming") == "from the VM"
        await page.click("#take-button")
        await until_message(page, "Press Ctrl+C")
        assert await page.evaluate("getSelection().toString()") == "from the VM"

    play(scenario)


def test_session_page_works_by_keyboard_alone(play: Play) -> None:
    async def scenario(_site: Site, _session: Session, page: Page, typed: Typed) -> None:
        assert "Ctrl+Alt+Shift" in await page.inner_text("#key-hint")
        await page.keyboard.press("Tab")  # goes to the VM
        await page.keyboard.press("Control+Alt+Shift")
        await page.wait_for_selector("#type-button:focus")
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await page.wait_for_selector("#clipboard-panel:not([hidden]) #outgoing:focus")
        await page.keyboard.press("Escape")
        await page.wait_for_selector("#clipboard-button:focus")
        await page.keyboard.press("Shift+Tab")
        await page.keyboard.press("Enter")
        await page.wait_for_selector(f"{CANVAS}:focus")
        await page.keyboard.type("no key is stuck")
        await page.keyboard.press("Enter")
        await typed.until("\tno key is stuck\n")

    play(scenario)


def test_the_bar_can_be_hidden(play: Play) -> None:
    async def scenario(_site: Site, _session: Session, page: Page, _typed: Typed) -> None:
        await page.click("#hide-button")
        await page.wait_for_selector("#bar", state="hidden")
        stage = await page.locator(".stage").bounding_box()
        assert stage is not None
        assert stage["height"] == 800
        await page.keyboard.press("Control+Alt+Shift")
        await page.wait_for_selector("#type-button:focus")
        await page.click("#hide-button")
        await page.click("#show-button")
        await page.wait_for_selector("#bar", state="visible")

    play(scenario)


def test_screen_scales_to_window_or_is_resized_to_it(play: Play) -> None:
    async def scenario(site: Site, _session: Session, page: Page, _typed: Typed) -> None:
        stage, canvas = page.locator(".stage"), page.locator(CANVAS)
        room = await stage.bounding_box()
        assert room is not None

        async def fits() -> bool:
            shown = await canvas.bounding_box()
            assert shown is not None
            return abs(shown["width"] - room["height"] * WIDTH / HEIGHT) <= 2

        await until(fits, "a picture as high as its place")
        await page.click("#match-button")

        async def has_its_size() -> bool:
            return f"{room['width']:.0f}x{room['height']:.0f}" in await site.screen.run("xdpyinfo")

        await until(has_its_size, "the size of the window")
        assert await page.get_attribute("#match-button", "aria-pressed") == "true"

    play(scenario)


def test_full_screen(play: Play) -> None:
    async def scenario(_site: Site, _session: Session, page: Page, _typed: Typed) -> None:
        await page.click("#full-button")
        await page.wait_for_selector("#full-button[aria-pressed=true]")
        await page.click("#full-button")
        await page.wait_for_selector("#full-button[aria-pressed=false]")

    play(scenario)


def test_touch_keyboard_button_sends_keys(play: Play) -> None:
    async def scenario(_site: Site, _session: Session, page: Page, typed: Typed) -> None:
        await page.tap("#keyboard-button")
        await page.wait_for_selector("#typed:focus")
        await page.keyboard.insert_text("Grüßx")
        await page.keyboard.press("Backspace")
        await page.keyboard.insert_text("e")
        await page.keyboard.press("Enter")
        await typed.until("Grüßx\x7fe\n")  # the terminal gives the key on

    play(scenario, has_touch=True, is_mobile=True, viewport={"width": 390, "height": 844})


def test_keyboard_button_is_hidden_without_touch_screen(play: Play) -> None:
    async def scenario(_site: Site, _session: Session, page: Page, _typed: Typed) -> None:
        assert await page.is_hidden("#keyboard-button")

    play(scenario)

"""The operators' pages of sessions, VMs and users, in a real Chromium."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.browser import chromium, in_browser
from tests.busy_host import BusyHost, busy_hosts, use_days
from tests.relays import HEIGHT, WIDTH, rfb_screen
from tests.web import PATIENCE_MS, page_of, violations

PICTURES = os.environ.get("POLYDEV_PICTURES")
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
}
WIDE: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}
LOW: dict[str, Any] = {"viewport": {"width": 1280, "height": 300}}
SCRIPT = "<script>window.ran = 1</script><img src=x onerror=window.ran=1>"
RED = bytes([0xD0, 0x10, 0x20, 0]) * (WIDTH * HEIGHT)

expect.set_options(timeout=PATIENCE_MS)


@asynccontextmanager
async def pages(host: BusyHost, caller: str = "operator", **context: Any) -> AsyncIterator[Page]:
    """A page of a signed-in browser; its console must tell of no error."""
    async with chromium() as browser, page_of(browser, **{**WIDE, **context}) as page:
        await page.goto(f"{host.url}/login?next=/")
        await page.fill("#token", host.made.tokens[caller])
        await page.click("button[type=submit]")
        await page.wait_for_url(f"{host.url}/")
        yield page


@in_browser
async def test_session_list_updates_and_keeps_focus_and_scroll(
    tmp_path: Path, packed_assets: Path
) -> None:
    async with busy_hosts(tmp_path, packed_assets) as host, pages(host, **LOW) as page:
        await page.goto(f"{host.url}/admin/sessions")
        rows = page.locator("table.machines tbody tr")
        await expect(rows).to_have_count(5)
        ready = host.sessions["ready"]
        row = page.locator(f"#vm-{ready.vm_id}")
        await expect(row).to_contain_text("Ada Berg")
        await expect(row).to_contain_text("ready")
        await page.locator(f"#user-{ready.vm_id}").focus()
        place = await page.evaluate("window.scrollY")
        assert place > 0, "the focus is further down"
        await host.begin("from the pool", "Grace Diaz")
        await host.begin("another", "Lena Frey")
        await host.measure(cpu_percent=21.0)
        await expect(rows).to_have_count(6)
        await expect(row).to_contain_text("63 %")
        assert await page.evaluate("document.activeElement.id") == f"user-{ready.vm_id}"
        assert await page.evaluate("window.scrollY") == place


@in_browser
async def test_session_list_filters_and_pages(
    tmp_path: Path, packed_assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polydev.controller.web.vm_pages.PAGE", 2)
    async with (
        busy_hosts(tmp_path, packed_assets) as host,
        pages(host, expects_network_errors=True) as page,
    ):
        await page.goto(f"{host.url}/admin/sessions")
        rows = page.locator("table.machines tbody tr")
        await page.select_option("select[name=user]", host.ids["Ada Berg"])
        await page.wait_for_url("**/admin/sessions?*user=*")
        await expect(rows).to_have_count(1)
        await page.select_option("select[name=user]", "")
        await page.wait_for_url("**user=")
        await page.select_option("select[name=shown]", "all")
        await page.wait_for_url("**shown=all*")
        seen = []
        for count in (2, 2, 1):
            await expect(rows).to_have_count(count)
            seen += [await each.get_attribute("id") for each in await rows.all()]
            if count == 2:
                await page.click("#older")
                await page.wait_for_url("**before=*")
                await expect(page.locator(f"#{seen[-1]}")).to_have_count(0)
        assert len(set(seen)) == 5


@in_browser
async def test_operator_ends_session_after_confirmation(
    tmp_path: Path, packed_assets: Path
) -> None:
    async with busy_hosts(tmp_path, packed_assets) as host, pages(host) as page:
        sessions = host.made.services.sessions
        await page.goto(host.vm_page("ready"))
        await page.click("#end-session")
        dialog = page.locator("#confirm-end")
        await expect(dialog).to_contain_text("This ends the session of Ada Berg now")
        await expect(dialog.get_by_role("button", name="Keep it")).to_be_focused()
        await page.keyboard.press("Escape")
        await expect(dialog).to_be_hidden()
        assert (await sessions.get(host.sessions["ready"].id)).is_live
        await page.click("#end-session")
        await dialog.get_by_role("button", name="End the session").click()
        await expect(page.locator("#summary .badge").first).to_have_text("ended")
        await expect(page.locator("#end-session")).to_have_count(0)
        assert (await sessions.get(host.sessions["ready"].id)).state == "terminated"


@in_browser
async def test_console_follows_pauses_and_escapes_text(tmp_path: Path, packed_assets: Path) -> None:
    async with (
        busy_hosts(tmp_path, packed_assets) as host,
        pages(host, expects_network_errors=True) as page,
    ):
        session = host.sessions["ready"]
        await page.goto(host.vm_page("ready"))
        shown = page.locator("#console")
        await expect(shown).to_contain_text("[  OK  ] Reached target network.target - Network.")
        await expect(page.locator("#console-state")).to_have_text("Following the console.")
        host.say(session, f"\x1b]0;title\x07\x1b[31m{SCRIPT}\x1b[0m\r\n10 %\r20 %\r30 %\n")
        await expect(shown).to_contain_text(f"\n{SCRIPT}\n30 %\n")
        assert "\x1b" not in (await shown.text_content() or "")
        await page.click("#pause-console")
        host.say(session, "said meanwhile\n")
        probe = f"/api/vm/{session.vm_id}/console?tail=1"
        await page.wait_for_function(
            f"async () => (await (await fetch('{probe}')).text()).includes('meanwhile')"
        )
        await expect(shown).not_to_contain_text("said meanwhile")
        await page.click("#pause-console")
        await expect(shown).to_contain_text("said meanwhile")
        host.say(session, "".join(f"line {n}\n" for n in range(3000)))
        await expect(shown).to_contain_text("line 2999")
        assert len((await shown.text_content() or "").splitlines()) <= 2001
        assert await page.evaluate("window.ran") is None
        await host.made.services.sessions.apply(session.id, "terminate")
        await host.made.services.vms.released(session.vm_id)
        await expect(page.locator("#console-state")).to_have_text("The VM has ended.")


@in_browser
async def test_screenshot_shows_screen_and_does_not_wake_paused_vm(
    tmp_path: Path, packed_assets: Path
) -> None:
    screen = partial(rfb_screen, RED)
    async with (
        busy_hosts(tmp_path, packed_assets, screen) as host,
        pages(host, expects_network_errors=True) as page,
    ):
        await page.goto(host.vm_page("ready"))
        await page.click("#take-screenshot")
        picture = page.locator("#screen")
        await expect(picture).to_be_visible()
        pixel = await picture.evaluate(
            """async image => {
                await image.decode();
                const canvas = document.createElement('canvas');
                canvas.width = image.naturalWidth;
                canvas.height = image.naturalHeight;
                const drawn = canvas.getContext('2d');
                drawn.drawImage(image, 0, 0);
                return [canvas.width, canvas.height, ...drawn.getImageData(9, 9, 1, 1).data];
            }"""
        )
        assert pixel == [WIDTH, HEIGHT, 0xD0, 0x10, 0x20, 255]
        await page.goto(host.vm_page("paused"))
        await page.click("#take-screenshot")
        await expect(page.locator("#screen-problem")).to_contain_text("does not wake it")
        vm = await host.made.services.vms.get(host.sessions["paused"].vm_id)
        assert vm.paused_at is not None


@in_browser
async def test_operator_viewer_is_read_only(tmp_path: Path, packed_assets: Path) -> None:
    async with (
        busy_hosts(tmp_path, packed_assets) as host,
        pages(host, expects_network_errors=True) as page,
    ):
        await page.goto(host.vm_page("ready"))
        async with page.expect_response("**/tickets") as answered:
            await page.click("#open-viewer")
        told = await (await answered.value).json()
        assert told["viewOnly"] is True
        assert told["url"].startswith(f"/session/{host.sessions['ready'].id}?ticket=")


@in_browser
async def test_users_page_shows_usage_and_quotas(tmp_path: Path, packed_assets: Path) -> None:
    async with busy_hosts(tmp_path, packed_assets) as host, pages(host) as page:
        await page.goto(f"{host.url}/admin/users")
        row = page.locator("tr", has=page.get_by_role("link", name="Alan Cole"))
        await expect(row).to_contain_text("8.2 h")
        await expect(row).to_contain_text("8.2 of 8 VM h today")
        await expect(row.locator("rect.bad")).to_have_count(1)
        await row.get_by_role("link").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Alan Cole")
        await expect(page.locator("svg.days rect")).to_have_count(30)
        await page.get_by_text("All figures by day").click()
        await expect(page.locator("details table tbody tr")).to_have_count(30)
        await page.get_by_role("link", name="ready").click()
        await page.wait_for_url(f"**/admin/vms/{host.sessions['paused'].vm_id}")


@in_browser
async def test_start_page_shows_quotas_and_warning(
    tmp_path: Path, packed_assets: Path, node_modules: Path
) -> None:
    async with busy_hosts(tmp_path, packed_assets) as host:
        host.made.tokens["Alan Cole"] = (
            await host.made.services.tokens.create(host.ids["Alan Cole"], "laptop")
        )[1]
        async with pages(host, "Alan Cole", expects_network_errors=True) as page:
            await page.goto(host.url)
            await expect(page.locator(".quotas")).to_contain_text("8.2 of 8 VM h today")
            assert await violations(page, node_modules) == []
            await page.click("[data-start=codex]")
            problem = page.locator("#start-problem")
            await expect(problem).to_contain_text("8.2 of 8 VM hours of today used")
            await expect(problem).to_contain_text("quota resets at")
            await page.goto(f"{host.url}/session/{host.sessions['paused'].id}")
            notice = page.locator("#notice")
            await expect(notice).to_contain_text("8.2 of 8 VM hours of today used")
            await expect(notice).to_contain_text("this one continues")
            assert (await host.made.services.sessions.get(host.sessions["paused"].id)).is_live


@in_browser
async def test_tokens_are_shown_to_operators_and_revoked_by_admins(
    tmp_path: Path, packed_assets: Path
) -> None:
    async with busy_hosts(tmp_path, packed_assets) as host:
        path = f"{host.url}/admin/users/{host.ids['Ada Berg']}"
        async with pages(host) as page:
            await page.goto(path)
            await expect(page.locator("tr", has_text="phone")).to_contain_text("valid")
            await expect(page.get_by_role("button", name="Revoke the token phone")).to_have_count(0)
        async with pages(host, "Root") as page:
            await page.goto(path)
            await page.get_by_role("button", name="Revoke the token phone").click()
            dialog = page.locator("#confirm-revoke")
            await expect(dialog).to_contain_text("phone")
            await dialog.get_by_role("button", name="Revoke").click()
            await expect(page.locator("tr", has_text="phone")).to_contain_text("revoked")
        found = await host.made.services.tokens.list(host.ids["Ada Berg"])
        assert {each.name for each in found if each.revoked_at} == {"notebook", "phone"}


@in_browser
async def test_texts_of_users_and_guests_are_escaped(tmp_path: Path, packed_assets: Path) -> None:
    async with busy_hosts(tmp_path, packed_assets) as host:
        services = host.made.services
        evil = host.ids[SCRIPT] = (await services.users.add("user", SCRIPT)).id
        await services.tokens.create(evil, SCRIPT)
        await use_days(host, SCRIPT, 1)
        host.made.users[SCRIPT] = evil
        failed = await host.made.booting(user=SCRIPT)
        host.sessions["evil"] = failed
        await services.vms.fail(failed.vm_id, SCRIPT, [SCRIPT], SCRIPT)
        boots = await host.made.booting(user=SCRIPT)
        host.sessions["boots"] = boots
        await services.vms.boots(boots.vm_id, SCRIPT)
        host.say(boots, f"{SCRIPT}\n")
        async with pages(host, "Root") as page:
            for path in (
                f"{host.url}/admin/sessions?shown=all",
                f"{host.url}/admin/users",
                f"{host.url}/admin/users/{evil}",
                host.vm_page("evil"),
                host.vm_page("boots"),
            ):
                await page.goto(path)
                await expect(page.locator("main")).to_contain_text(SCRIPT)
                assert await page.locator("main script, main img[src=x]").count() == 0
                assert await page.evaluate("window.ran") is None
            await expect(page.locator("#console")).to_contain_text(SCRIPT)
            assert await page.evaluate("window.ran") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
@in_browser
async def test_operator_pages_pass_axe_and_screenshots_are_taken(
    scheme: str, tmp_path: Path, packed_assets: Path, node_modules: Path
) -> None:
    """POLYDEV_PICTURES=docs/web keeps the screenshots there."""
    folder = Path(PICTURES) if PICTURES else tmp_path
    screen = partial(rfb_screen, RED)
    async with busy_hosts(tmp_path / "host", packed_assets, screen) as host:
        shown = {
            "sessions": f"{host.url}/admin/sessions",
            "users": f"{host.url}/admin/users",
            "user": f"{host.url}/admin/users/{host.ids['Ada Berg']}",
            "vm": host.vm_page("ready"),
            "failed": host.vm_page("failed"),
        }
        looks = {scheme: WIDE, **({"phone": PHONE} if scheme == "light" else {})}
        for look, context in looks.items():
            context = {**context, "color_scheme": scheme}
            async with pages(host, "Root", expects_network_errors=True, **context) as page:
                for name, url in shown.items():
                    answer = await page.goto(url)
                    assert answer is not None
                    assert answer.status == 200, name
                    if name == "vm":
                        await page.click("#take-screenshot")
                        await expect(page.locator("#screen")).to_be_visible()
                        await expect(page.locator("#console")).to_contain_text("ready after")
                    await page.screenshot(path=folder / f"{name}-{look}.png", full_page=True)
                    if name == "vm":
                        await page.click("#end-session")
                        await expect(page.locator("#confirm-end")).to_be_visible()
                    assert await violations(page, node_modules) == [], name
                    overflows = (
                        f"document.documentElement.scrollWidth > {context['viewport']['width']}"
                    )
                    assert not await page.evaluate(overflows), f"{name} is too wide"

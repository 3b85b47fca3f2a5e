"""The operators' pages of images, deployments and alerts, in a real Chromium."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.browser import chromium, in_browser
from tests.recorded_host import SCRIPT, RecordedHost, recorded_hosts
from tests.web import PATIENCE_MS, page_of, violations

# The folder for screenshots of the pages, for their document; none by default.
PICTURES = os.environ.get("POLYDEV_PICTURES")
WIDE: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
}
LISTS = {"images": "/admin/images", "deployments": "/admin/deployments", "alerts": "/admin/alerts"}

Opened = Callable[..., Any]

expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture
def opened(
    tmp_path: Path, packed_assets: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """A host and a page of a signed-in operator; its console must tell of no error."""

    @asynccontextmanager
    async def open_page(
        markup: str = SCRIPT, **context: Any
    ) -> AsyncIterator[tuple[RecordedHost, Page]]:
        async with (
            recorded_hosts(tmp_path, packed_assets, monkeypatch, markup) as host,
            chromium() as browser,
            page_of(browser, **{**WIDE, **context}) as page,
        ):
            await page.goto(f"{host.url}/login?next=/admin/images")
            await page.fill("#token", host.made.tokens["operator"])
            await page.click("button[type=submit]")
            await page.wait_for_url(f"{host.url}/admin/images")
            yield host, page

    return open_page


def paths_of(host: RecordedHost) -> list[str]:
    """Every page, and each kind of image and deployment."""
    return [
        *LISTS.values(),
        *(f"/admin/images/{digest}" for digest in host.images.values()),
        *(f"/admin/deployments/{each}" for each in host.deployments.values()),
        "/admin/deployments/20260101_000000-dead",
    ]


@in_browser
async def test_image_pages_show_specs_packages_and_differences(opened: Opened) -> None:
    async with opened() as (host, page):
        rows = page.locator("table.images tbody tr")
        golden = host.images["golden"]
        await expect(rows.first).to_contain_text(golden[:12])
        await expect(rows.first).to_contain_text("golden")
        await expect(rows.first).to_contain_text("6 specs passed")
        await expect(page.locator("table.images")).to_contain_text("unreadable")
        await rows.first.get_by_role("link").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text(f"Image {golden[:12]}")
        await page.get_by_text("test_browser.py").click()
        await expect(page.get_by_text("test_chromium_is_sandboxed")).to_be_visible()
        await page.select_option("select[name=with]", host.images["before"])
        changes = page.locator("#diff table")
        await expect(changes).to_contain_text("141.0.7390.122-1~deb12u1")
        await expect(changes).to_contain_text("142.0.7444.59-1~deb12u1")
        await expect(page.locator("#diff")).to_contain_text("1 removed")
        await page.fill("#package-words", "tigervnc server")
        await expect(page.locator("#packages tbody tr")).to_have_count(1)
        async with page.expect_download() as downloaded:
            await page.get_by_role("button", name="Bill of materials").click()
        bill = await (await downloaded.value).path()
        assert golden in bill.read_text()


@in_browser
async def test_deployment_page_shows_operations_and_rollback_command(opened: Opened) -> None:
    async with opened() as (host, page):
        await page.goto(host.url + LISTS["deployments"])
        newest = host.deployments["newest"]
        await page.get_by_role("link", name=newest).click()
        before = host.deployments["script"]
        line = f"./inv rollback --to {before} --inventory FILE --host browsers-1.example.com"
        await expect(page.locator("#command")).to_have_text(line)
        await expect(page.locator("ol.operations li")).to_have_count(3)
        await expect(page.locator("table")).to_contain_text("14 active")
        await page.goto(f"{host.url}/admin/deployments/{host.deployments['failed']}")
        await expect(page.locator(".problem").first).to_contain_text("does not answer")
        await expect(page.get_by_text("before this deployment was restored")).to_be_visible()
        await page.goto(f"{host.url}/admin/deployments/{host.deployments['first']}")
        await expect(page.get_by_text("nothing was deployed before it")).to_be_visible()
        await page.goto(f"{host.url}/admin/deployments/20260101_000000-dead")
        await expect(page.get_by_role("alert").first).to_contain_text("cannot be read")


@in_browser
async def test_deployment_list_has_pages(opened: Opened) -> None:
    async with opened() as (host, page):
        for number in range(30):
            host.deploy(f"more {number}", timedelta(hours=30 - number))
        await page.goto(host.url + LISTS["deployments"])
        rows = page.locator("table.deployments tbody tr")
        await expect(rows).to_have_count(30)
        await page.get_by_role("button", name="Older ones").click()
        await expect(rows).to_have_count(5)
        await page.get_by_role("button", name="The newest ones").click()
        await expect(rows).to_have_count(30)


@in_browser
async def test_new_alert_appears_and_sends_notification_if_enabled(opened: Opened) -> None:
    async with opened(permissions=["notifications"]) as (host, page):
        await _note_notifications(page)
        await page.goto(host.url + LISTS["alerts"])
        await expect(page.locator("article.alert")).to_have_count(2)
        button = page.get_by_role("button", name="Notify me of new alerts")
        await button.click()
        await expect(page.locator("#notify")).to_have_attribute("aria-pressed", "true")
        alerts = host.made.services.alerts
        await alerts.raise_("cpu", "host", "critical", f"CPU is at 97 % {SCRIPT}", 97)
        await expect(page.locator("article.alert")).to_have_count(3)
        assert await page.evaluate("window.shown") == [
            {"title": "critical: cpu", "body": f"CPU is at 97 % {SCRIPT}"}
        ]
        await page.get_by_role("button", name="Do not notify me").click()
        await alerts.raise_("temperature", "host", "warning", "it is warm", 80)
        await expect(page.locator("article.alert")).to_have_count(4)
        assert len(await page.evaluate("window.shown")) == 1
        await alerts.clear("cpu", "host")
        await expect(page.locator("article.alert")).to_have_count(3)


async def _note_notifications(page: Page) -> None:
    """Record requested notifications, since headless Chromium shows none."""
    await page.add_init_script(
        """window.shown = [];
        const Real = window.Notification;
        window.Notification = class {
            constructor(title, options) { window.shown.push({title, body: options.body}); }
            static get permission() { return Real.permission; }
            static requestPermission() { return Real.requestPermission(); }
        };"""
    )


@in_browser
async def test_denied_notifications_are_explained(opened: Opened) -> None:
    async with opened() as (host, page):
        # Permissions that are not granted are denied.
        await page.context.grant_permissions(["clipboard-read"])
        await page.goto(host.url + LISTS["alerts"])
        await expect(page.locator("#notify-state")).to_contain_text("blocks notifications")
        await expect(page.locator("#notify")).to_be_hidden()
        await host.made.services.alerts.raise_("cpu", "host", "warning", "CPU is at 80 %", 80)
        await expect(page.locator("article.alert")).to_have_count(3)


@in_browser
async def test_markup_in_records_is_escaped(opened: Opened) -> None:
    async with opened() as (host, page):
        for path in paths_of(host):
            await page.goto(host.url + path)
            await page.wait_for_load_state("networkidle")
            assert await page.evaluate("window.ran") is None, path
            assert await page.locator("main script, main img").count() == 0, path
        await page.goto(f"{host.url}/admin/deployments/{host.deployments['script']}")
        await expect(page.locator("dl")).to_contain_text(f"ada@desk {SCRIPT}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@in_browser
async def test_record_pages_pass_axe(opened: Opened, node_modules: Path, scheme: str) -> None:
    async with opened(color_scheme=scheme) as (host, page):
        for path in paths_of(host):
            await page.goto(host.url + path)
            await page.wait_for_load_state("networkidle")
            assert await violations(page, node_modules) == [], path


@pytest.mark.parametrize("kind", ["light", "dark", "phone"])
@in_browser
async def test_record_pages_have_no_horizontal_overflow(opened: Opened, kind: str) -> None:
    context = PHONE if kind == "phone" else {**WIDE, "color_scheme": kind}
    async with opened("", **context) as (host, page):
        golden, newest = host.images["golden"], host.deployments["newest"]
        pages = {
            **LISTS,
            "image": f"{LISTS['images']}/{golden}",
            "deployment": f"{LISTS['deployments']}/{newest}",
        }
        for name, path in pages.items():
            await page.goto(host.url + path)
            await page.wait_for_load_state("networkidle")
            width = await page.evaluate("document.documentElement.scrollWidth")
            assert width <= context["viewport"]["width"], (name, width)
            await _picture(page, f"{name}-{kind}")


async def _picture(page: Page, name: str) -> None:
    if PICTURES:
        await page.screenshot(path=Path(PICTURES, f"{name}.png"))

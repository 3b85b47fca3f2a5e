"""The host's page in Chromium: colours, live figures, charts, exports, a missing controller."""

from __future__ import annotations

import asyncio
import csv
import json
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from playwright.async_api import Page, Request, expect

from polydev.controller.entities import now
from polydev.controller.host import processes, psutil_reader
from polydev.controller.host.network_checks import NetworkChecks
from polydev.controller.host.system_status import NetworkCheck, NetworkHealth
from tests.browser import chromium, run_in_browser
from tests.dashboards import DashboardPage, dashboard_pages, fill
from tests.ports import reserved_port
from tests.relays import Screens, screens
from tests.unit.test_dashboard import SCRIPT, named_script
from tests.web import PATIENCE_MS, violations

MOST_BYTES = 120_000
SLOTS = tuple(range(2, 10))
FILLS = {"good": "rgb(46, 163, 106)", "warn": "rgb(217, 154, 11)", "bad": "rgb(214, 69, 69)"}
DRAWN = "performance.getEntriesByName('charts-drawn').map(each => each.detail)"

expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(autouse=True)
def well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Report healthy figures, however busy this machine is, and however full its disk."""
    monkeypatch.setattr(psutil_reader, "cpu_usage", lambda _before, _after: 12.5)
    memory = SimpleNamespace(total=10 << 30, available=6 << 30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(psutil, "sensors_temperatures", dict)
    usage = SimpleNamespace(total=100, used=10, free=90, percent=10.0)
    monkeypatch.setattr(psutil, "disk_usage", lambda _mount: usage)

    async def report(_probe: NetworkChecks) -> NetworkHealth:
        check = NetworkCheck(name="bridge", status="healthy", detail="br-vm has 192.168.100.1")
        return NetworkHealth(status="healthy", checks=[check])

    monkeypatch.setattr(NetworkChecks, "report", report)


@asynccontextmanager
async def opened_page(
    folder: Path, packed_assets: Path, **options: Any
) -> AsyncIterator[tuple[Screens, DashboardPage]]:
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(screens(folder, SLOTS, packed_assets=packed_assets))
        browser = await stack.enter_async_context(chromium())
        yield host, await stack.enter_async_context(dashboard_pages(browser, host, **options))


def run(scenario: Coroutine[Any, Any, None]) -> None:
    run_in_browser(scenario)


async def until(page: Page, expression: str, wanted: Callable[[Any], bool]) -> Any:
    """Wait for a value in the page. Playwright's own way needs eval, which the policy forbids."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_MS / 1000
    while not wanted(found := await page.evaluate(expression)):
        assert asyncio.get_running_loop().time() < deadline, f"{expression} is {found}"
        await page.wait_for_timeout(50)
    return found


async def charts_drawn(page: Page) -> list[dict[str, int]]:
    found: list[dict[str, int]] = await until(page, DRAWN, bool)
    return found


# A bar's colour, and how much of its track it covers.
OF_MEMORY = """() => {
    const bar = document.querySelectorAll('#part-bars .bar-track rect')[1];
    const width = bar.getBoundingClientRect().width;
    return [getComputedStyle(bar).fill, width / bar.ownerSVGElement.getBoundingClientRect().width];
}"""


def test_bar_colour_follows_usage(
    tmp_path: Path, packed_assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with opened_page(tmp_path, packed_assets) as (_host, look):
            for percent, colour in ((69, "good"), (70, "warn"), (90, "warn"), (91, "bad")):
                memory = SimpleNamespace(total=100, available=100 - percent)
                monkeypatch.setattr(psutil, "virtual_memory", lambda memory=memory: memory)
                await look.go("/admin")
                words = f"{percent} %"
                bar = look.page.locator("#part-bars .bar", has_text="Memory")
                await bar.get_by_text(words, exact=False).first.wait_for()
                fill, share = await look.page.evaluate(OF_MEMORY)
                assert (fill, round(share, 2)) == (FILLS[colour], percent / 100), percent
                banners = await look.page.locator(".banner").count()
                assert banners == (percent > 90)
            assert look.errors == []

    run(scenario())


def test_dashboard_updates_only_changed_parts(
    tmp_path: Path, packed_assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with opened_page(tmp_path, packed_assets) as (host, look):
            await look.go("/admin")
            await look.page.wait_for_selector("#part-processes table")
            same = "document.querySelector('#part-alerts p') === window.seen"
            await look.page.evaluate("window.seen = document.querySelector('#part-alerts p')")
            monkeypatch.setattr(
                psutil, "virtual_memory", lambda: SimpleNamespace(total=100, available=23)
            )
            await look.page.locator("#part-bars").get_by_text("77 %").wait_for()
            assert await look.page.evaluate(same), "a part without a change was replaced"
            await host.services.alerts.raise_("no_slots", "host", "warning", "all in use", None)
            await look.page.locator("#part-alerts").get_by_text("all in use").wait_for()
            await look.page.get_by_text("2 things need attention").wait_for()
            assert look.errors == []

    run(scenario())


# Makes Chromium report the page as hidden, as in another tab: without a window nothing else does.
HIDE = """() => {
    Object.defineProperty(document, 'hidden', {get: () => window.away, configurable: true});
    window.away = true;
    document.dispatchEvent(new Event('visibilitychange'));
}"""
SHOW = "window.away = false; document.dispatchEvent(new Event('visibilitychange'))"


def test_hidden_dashboard_stops_polling(tmp_path: Path, packed_assets: Path) -> None:
    async def scenario() -> None:
        async with opened_page(tmp_path, packed_assets) as (_host, look):

            def polls() -> int:
                return sum(answer.url.endswith("/admin/live") for answer in look.answers)

            await look.go("/admin")
            await look.page.wait_for_selector("#part-processes table")
            await look.page.evaluate(HIDE)
            asked = polls()
            await look.page.wait_for_timeout(7000)  # longer than from one look to the next
            assert polls() <= asked + 1, "one may have been under way"
            asked = polls()
            await look.page.evaluate(SHOW)
            await until(look.page, "0", lambda _: polls() > asked)

    run(scenario())


def test_unreachable_controller_keeps_figures_and_shows_their_age(
    tmp_path: Path, packed_assets: Path
) -> None:
    """Requests are aborted between browser and server, as by a broken connection."""

    async def scenario() -> None:
        async with opened_page(tmp_path, packed_assets) as (host, look):
            page = look.page
            await fill(host.services)
            await look.go("/admin")
            await charts_drawn(page)
            await page.wait_for_selector("#part-processes table")
            async with page.expect_event("requestfailed", is_poll):
                await page.route("**/admin/**", lambda route: route.abort("connectionrefused"))
            # From now on none is under way that could bring other figures.
            before = await page.inner_text("#part-bars")
            assert "Memory" in before
            lost = page.locator("#lost")
            await lost.wait_for(state="visible")
            assert (await lost.inner_text()).startswith("No answer from the controller for ")
            assert "trying again" in await lost.inner_text()
            assert await page.inner_text("#part-bars") == before, "the old figures stay"
            assert await page.locator("#notice").is_hidden(), "it is said once"
            assert "updated" in await page.inner_text("#age")
            await page.unroute("**/admin/**")
            await lost.wait_for(state="hidden")
            assert await page.locator(".chart canvas").count() >= 8

    run(scenario())


def is_poll(request: Request) -> bool:
    return request.url.endswith("/admin/live")


def test_dashboard_recovers_after_controller_restart(tmp_path: Path, packed_assets: Path) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            browser = await stack.enter_async_context(chromium())
            port = stack.enter_context(reserved_port())
            first = AsyncExitStack()
            host = await first.enter_async_context(
                screens(tmp_path / "one", SLOTS, packed_assets=packed_assets, port=port)
            )
            look = await stack.enter_async_context(dashboard_pages(browser, host))
            await look.go("/admin")
            await look.page.wait_for_selector("#part-processes table")
            await first.aclose()
            await look.page.locator("#lost").wait_for(state="visible")
            words = await look.page.locator("#lost").inner_text()
            assert words.startswith("No answer from the controller for ")
            assert "trying again" in words
            assert await look.page.locator("#part-bars .bar").count() >= 3, "old figures stay"
            assert await look.page.locator("#notice").is_hidden(), "it is said once"
            same: dict[str, Any] = {
                "port": port,
                "database_url": host.services.settings.database_url,
            }
            await stack.enter_async_context(
                screens(tmp_path / "two", SLOTS, packed_assets=packed_assets, **same)
            )
            await look.page.locator("#lost").wait_for(state="hidden")
            await look.page.get_by_text("updated just now").wait_for()

    run(scenario())


def test_charts_draw_a_day_of_samples(tmp_path: Path, packed_assets: Path) -> None:
    async def scenario() -> None:
        async with opened_page(tmp_path, packed_assets) as (host, look):
            page, count = look.page, await fill(host.services)
            await look.go("/admin")
            drawn = (await charts_drawn(page))[0]
            assert drawn["points"] >= count - 2
            assert drawn["frames"] <= 2
            titles = await page.locator(".chart h3").all_inner_texts()
            assert titles == [
                "CPU",
                "Memory",
                "Disks",
                "Network",
                "Sessions and VMs",
                "Start times of sessions",
                "Slots and pool",
                "Temperature",
            ]
            for chart in await page.locator(".chart").all():
                canvas = chart.locator("canvas")
                assert await canvas.evaluate(INK) > 100, await chart.inner_text()
                # The script draws a chart, then describes it.
                plot = chart.locator(".plot")
                await expect(plot).to_have_attribute("aria-label", re.compile("lowest"))
            plot = page.locator("#chart-cpu .plot")
            day = await plot.get_attribute("aria-label")
            assert day is not None
            await page.get_by_text("1 h", exact=True).click()
            # Another range has other lowest and highest values.
            await expect(plot).not_to_have_attribute("aria-label", day)
            await page.locator("#chart-starts summary").click()
            rows = page.locator("#chart-starts tbody tr")
            await rows.nth(19).wait_for()
            assert await rows.count() <= 25
            heads = await page.locator("#chart-starts thead th").all_inner_texts()
            assert heads[:3] == ["Time", "pool, median", "pool, longest"]
            assert look.errors == []

    run(scenario())


def test_dashboard_transfers_few_bytes(tmp_path: Path, packed_assets: Path) -> None:
    """Counts the bytes transferred with an empty cache, with headers and a day of charts."""

    async def scenario() -> None:
        async with opened_page(tmp_path, packed_assets) as (host, look):
            await fill(host.services)
            cdp = await look.page.context.new_cdp_session(look.page)
            urls: dict[str, str] = {}
            sizes: dict[str, float] = {}

            def begun(told: dict[str, Any]) -> None:
                urls[told["requestId"]] = told["request"]["url"]

            def finished(told: dict[str, Any]) -> None:
                # The live parts are loaded again and again; the first time counts.
                if url := urls.get(told["requestId"]):
                    sizes.setdefault(url, told["encodedDataLength"])

            cdp.on("Network.requestWillBeSent", begun)
            cdp.on("Network.loadingFinished", finished)
            await cdp.send("Network.enable")
            await cdp.send("Network.clearBrowserCache")
            await look.go("/admin")
            await charts_drawn(look.page)
            await look.page.wait_for_selector("#part-processes table")
            assert len(sizes) >= 12, "page, styles, scripts, charts, live parts"
            assert sum(sizes.values()) <= MOST_BYTES

    run(scenario())


# How many pixels of a canvas are not transparent.
INK = (
    "each => each.getContext('2d').getImageData(0, 0, each.width, each.height)"
    ".data.filter((value, index) => index % 4 === 3 && value > 0).length"
)


def test_charts_without_samples_show_a_message(tmp_path: Path, packed_assets: Path) -> None:
    async def scenario() -> None:
        async with opened_page(tmp_path, packed_assets) as (_host, look):
            await look.go("/admin")
            await look.page.get_by_text("There are no samples yet.").wait_for()
            assert look.errors == []

    run(scenario())


def test_charts_that_fail_to_load_show_a_message(tmp_path: Path, packed_assets: Path) -> None:
    async def scenario() -> None:
        async with opened_page(tmp_path, packed_assets) as (_host, look):
            await look.page.route("**/charts.json", lambda route: route.abort())
            await look.go("/admin")
            await look.page.get_by_text("The charts could not be loaded:").wait_for()

    run(scenario())


def test_exports_download_as_csv_and_json(tmp_path: Path, packed_assets: Path) -> None:
    async def scenario() -> None:
        async with opened_page(tmp_path, packed_assets) as (host, look):
            count = await fill(host.services)
            await look.go("/admin")
            for form in ("CSV", "JSON"):
                async with look.page.expect_download() as downloading:
                    await look.page.get_by_role("link", name=form, exact=True).click()
                file = await downloading.value
                assert file.suggested_filename.endswith(f".{form.lower()}")
                text = await asyncio.to_thread(Path(await file.path()).read_text)
                is_csv = form == "CSV"
                rows = list(csv.DictReader(text.splitlines())) if is_csv else json.loads(text)
                assert count - 2 <= len(rows) <= count
                assert float(rows[-1]["cpu_percent"]) >= 0

    run(scenario())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_dashboard_passes_axe(
    tmp_path: Path,
    packed_assets: Path,
    node_modules: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    width: int,
) -> None:
    usage = SimpleNamespace(total=100, used=95, free=5)
    monkeypatch.setattr(psutil, "disk_usage", lambda _mount: usage)

    async def scenario() -> None:
        size = {"width": width, "height": 900}
        options = {"color_scheme": scheme, "viewport": size}
        async with opened_page(tmp_path, packed_assets, **options) as (host, look):
            await fill(host.services)
            await host.services.alerts.raise_("no_slots", "host", "warning", "all in use", None)
            await look.go("/admin")
            await charts_drawn(look.page)
            await look.page.wait_for_selector("#part-processes table")
            await look.page.locator(".banner").wait_for()
            await look.page.locator("#chart-cpu summary").click()
            await look.page.locator("#chart-cpu tbody tr").first.wait_for()
            assert await violations(look.page, node_modules) == []
            overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert await look.page.evaluate(overflow) == 0, "it scrolls sideways"
            assert look.errors == []

    run(scenario())


def test_scripts_in_names_are_escaped(
    tmp_path: Path, packed_assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "process_times", named_script(processes.process_times))
    up, counters = (
        SimpleNamespace(isup=True, flags="up"),
        SimpleNamespace(bytes_recv=1, bytes_sent=1),
    )
    monkeypatch.setattr(psutil, "net_if_stats", lambda: {SCRIPT: up})
    monkeypatch.setattr(psutil, "net_io_counters", lambda **_: {SCRIPT: counters})

    async def scenario() -> None:
        async with opened_page(tmp_path, packed_assets) as (host, look):
            await fill(host.services)
            sample = {"cpu": 1.0, "disk": {f"/{SCRIPT}": 50.0}}
            await host.services.samples.add(now(), sample)
            await host.services.alerts.raise_("disk", SCRIPT, "critical", SCRIPT, None)
            await look.go("/admin")
            await charts_drawn(look.page)
            for part in ("#part-network", "#part-alerts", "#part-processes", "#charts"):
                await look.page.locator(part).get_by_text(SCRIPT).first.wait_for()
            await look.page.locator("#chart-disk summary").click()
            await look.page.locator("#chart-disk thead").get_by_text(SCRIPT).wait_for()
            assert await look.page.evaluate("document.querySelectorAll('main script').length") == 0
            assert look.errors == []

    run(scenario())

"""Bench: charts of a day against charts of an hour, by the CPU time of the page's scripts."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from playwright.async_api import CDPSession

from polydev.controller.entities import now
from tests.bench.conftest import Ratios
from tests.browser import chromium, run_in_browser
from tests.dashboards import dashboard_pages, day_of_samples
from tests.relays import screens

HOUR, DAY = timedelta(hours=1), timedelta(hours=24)
ROUNDS, FRAMES = 6, 5
# A day has five times the samples of its last hour.
LIMIT = 3.5


async def script_seconds(cdp: CDPSession) -> float:
    found = await cdp.send("Performance.getMetrics")
    return {each["name"]: float(each["value"]) for each in found["metrics"]}["ScriptDuration"]


async def drawing_seconds(folder: Path, packed_assets: Path, span: timedelta) -> float:
    """The CPU time of drawing all charts anew, which a change of the colour scheme does."""
    async with (
        screens(folder, packed_assets=packed_assets) as host,
        chromium() as browser,
        dashboard_pages(browser, host) as look,
    ):
        end = now()
        for at, sample in day_of_samples(end):
            if at >= end - span:
                await host.services.samples.add(at, sample.model_dump(mode="json"))
        cdp = await look.page.context.new_cdp_session(look.page)
        await cdp.send("Performance.enable", {"timeDomain": "threadTicks"})
        await look.go("/admin")
        await look.page.wait_for_selector("#chart-temperature.is-drawn")
        before = await script_seconds(cdp)
        for number in range(ROUNDS):
            await look.page.emulate_media(color_scheme="light" if number % 2 else "dark")
            for _ in range(FRAMES):  # it is drawn in one of them
                await look.page.evaluate("new Promise(requestAnimationFrame)")
        return (await script_seconds(cdp) - before) / ROUNDS


def test_charts_of_a_day_draw_nearly_as_fast_as_charts_of_an_hour(
    tmp_path: Path, packed_assets: Path, ratio: Ratios
) -> None:
    async def both() -> list[float]:
        found = []
        for name, span in (("day", DAY), ("hour", HOUR)):
            (tmp_path / name).mkdir()
            found.append(await drawing_seconds(tmp_path / name, packed_assets, span))
        return found

    day, hour = run_in_browser(both())
    ratio("charts_day_to_hour", day * 1000, hour * 1000, limit=LIMIT, unit="ms")

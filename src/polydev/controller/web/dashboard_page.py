"""The operators' page of the host, rendered once for all of its viewers."""

from __future__ import annotations

import asyncio
import json
import socket

from fastapi import APIRouter, Depends
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from polydev.controller.app_services import Services
from polydev.controller.auth.authentication import operator_of
from polydev.controller.host.blocking_call import NoAnswer
from polydev.controller.host.cached_call import CachedCall
from polydev.controller.host.charts import chart_columns
from polydev.controller.host.history_cache import LastDay
from polydev.controller.host.processes import why_unavailable
from polydev.controller.web.compressed_content import Content
from polydev.controller.web.dashboard_rows import process_rows
from polydev.controller.web.dashboard_values import view_of
from polydev.controller.web.page_rendering import Pages

PARTS = ("status", "findings", "bars", "sessions", "network", "alerts")
FRESH_SECONDS = 2.0
CHARTS_FRESH_SECONDS = 5.0
MOST_PROCESSES = 5
ZIP_LEVEL = 6


def routes(services: Services, pages: Pages) -> APIRouter:
    router = APIRouter(include_in_schema=False, dependencies=[Depends(operator_of)])
    dashboard = Dashboard(services, pages)

    @router.get("/admin")
    async def show_dashboard(request: Request) -> Response:
        parts = await dashboard.parts()
        return pages.render(request, "dashboard.html", host=socket.gethostname(), parts=parts)

    @router.get("/admin/live")
    async def get_live(request: Request) -> Response:
        return (await dashboard.live()).answer(request)

    @router.get("/admin/charts.json")
    async def get_charts(request: Request) -> Response:
        return (await dashboard.charts()).answer(request)

    return router


class Dashboard:
    """The parts of the page, rendered at most every two seconds, for any number of viewers."""

    def __init__(self, services: Services, pages: Pages) -> None:
        self._services = services
        self._pages = pages
        self.parts = CachedCall(self._make_parts, FRESH_SECONDS)
        self.live = CachedCall(self._make_live, FRESH_SECONDS)
        self.charts = CachedCall(self._make_charts, CHARTS_FRESH_SECONDS)

    async def _make_parts(self) -> dict[str, Markup]:
        snapshot = await self._services.host_state.latest()
        view = view_of(snapshot, self._services.settings.alert.critical_percent)
        return {name: self._pages.part(f"dashboard/{name}.html", view=view) for name in PARTS}

    async def _make_live(self) -> Content:
        parts, processes = await asyncio.gather(self.parts(), self._processes())
        parts = {**parts, "processes": processes}
        page = self._pages.part("dashboard/htmx_updates.html", parts=parts)
        return Content.of(page.encode(), "text/html; charset=utf-8", ZIP_LEVEL)

    async def _processes(self) -> Markup:
        found = self._services.processes
        try:
            by_cpu = process_rows(await found.most("cpu", MOST_PROCESSES))
            by_memory = process_rows(await found.most("memory", MOST_PROCESSES))
            why = ""
        except NoAnswer as error:
            by_cpu, by_memory, why = [], [], why_unavailable(error)
        return self._pages.part(
            "dashboard/processes.html", by_cpu=by_cpu, by_memory=by_memory, unavailable=why
        )

    async def _make_charts(self) -> Content:
        day = await self._services.history_cache.day()
        return await asyncio.to_thread(_charts, day)


def _charts(day: LastDay) -> Content:
    text = json.dumps(chart_columns(day), separators=(",", ":"))
    return Content.of(text.encode(), "application/json", ZIP_LEVEL)

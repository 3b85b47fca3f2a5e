"""Samples of the host's metrics over the last hours, as JSON and as files."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from polydev.controller.api.documented_errors import error_responses
from polydev.controller.api.url_numbers import DecimalNumber, WholeNumber
from polydev.controller.app_services import Services
from polydev.controller.entities import now
from polydev.controller.host.history import History, timed_samples
from polydev.controller.host.history_export import MEDIA_TYPES, Format, HistoryExport, file_name
from polydev.controller.host.sample import Sample

MOST_HOURS = 24 * 31
MOST_POINTS = 2000
EXAMPLES: dict[Format, str] = {
    "csv": "at,cpu_percent,disk_percent[/]\r\n2026-11-21T10:15:00Z,12.5,41.0\r\n",
    "json": '[\n{"at": "2026-11-21T10:15:00Z", "cpu_percent": 12.5, "disk_percent[/]": 41.0}\n]\n',
}

Hours = Annotated[DecimalNumber, Query(gt=0, le=MOST_HOURS, allow_inf_nan=False)]


def add_history(router: APIRouter, services: Services) -> None:
    @router.get(
        "/health/history",
        summary="Samples of the host's metrics over the last hours, oldest first",
        description="With more samples than `points`, the time since the first one is divided "
        "into that many parts, and the last sample of each part is returned. `starts` are start "
        "times of sessions that became ready since the previous sample, by the origin of their VM: "
        "the `pool`, a `clone` of the template, or a `boot`.",
        responses=error_responses(422),
    )
    async def get_history(
        hours: Hours = 24,
        points: Annotated[WholeNumber, Query(ge=1, le=MOST_POINTS)] = 300,
    ) -> History:
        end = now()
        start = end - timedelta(hours=hours)
        found = await services.samples.between(start, end, points)
        samples = [(at, Sample(**figures)) for at, figures in found]
        return History(
            samples=timed_samples(samples, await services.session_starts.between(start, end))
        )

    _add_files(router, services)


def _add_files(router: APIRouter, services: Services) -> None:
    def described(form: Format) -> dict[str, Any]:
        content = {MEDIA_TYPES[form].partition(";")[0]: {"example": EXAMPLES[form]}}
        return {
            "summary": f"Samples of the host's metrics over the last hours, as {form.upper()}",
            "description": "A row for each sample and a column for each figure, whose name says "
            "its unit. Rates are those since the row before. Times are UTC.",
            "response_class": StreamingResponse,
            "responses": {200: {"content": content}, **error_responses(422)},
        }

    @router.get("/health/history.csv", **described("csv"))
    async def get_csv(hours: Hours = 24) -> StreamingResponse:
        return history_file(services, hours, "csv")

    @router.get("/health/history.json", **described("json"))
    async def get_json(hours: Hours = 24) -> StreamingResponse:
        return history_file(services, hours, "json")


def history_file(services: Services, hours: float, form: Format) -> StreamingResponse:
    """Return a file with the samples of the last hours, which is written while it is sent."""
    end: datetime = now()
    export = HistoryExport(
        services.samples, services.session_starts, end - timedelta(hours=hours), end
    )
    text = export.as_csv() if form == "csv" else export.as_json()
    disposition = f'attachment; filename="{file_name(end, form)}"'
    headers = {"Content-Disposition": disposition}
    return StreamingResponse(text, media_type=MEDIA_TYPES[form], headers=headers)

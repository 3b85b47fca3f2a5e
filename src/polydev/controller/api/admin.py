"""The host, for operators: its health now and over the last hours, alerts, templates."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from polydev.controller.api.identity import BEARER, operator_of
from polydev.controller.api.pool import add_pool
from polydev.controller.api.refusals import refusals
from polydev.controller.api.templates import add_templates
from polydev.controller.host.measuring import HostFigures
from polydev.controller.host.network_health import NetworkProbe
from polydev.controller.host.reports import AlertReport, AlertsReport, History, timed_sample
from polydev.controller.host.shapes import (
    Cpu,
    Disks,
    Memory,
    Network,
    NetworkHealth,
    System,
    Temperature,
)
from polydev.controller.model import now
from polydev.controller.services import Services

MOST_HOURS = 24 * 31
MOST_POINTS = 2000
MOST_ALERTS = 1000

Hours = Annotated[float, Query(gt=0, le=MOST_HOURS, allow_inf_nan=False)]


def routes(services: Services) -> APIRouter:
    router = APIRouter(
        prefix="/api/admin", tags=["admin"], dependencies=[BEARER, Depends(operator_of)]
    )
    host = services.sampler.host
    _add_health(router, host)
    _add_parts(router, host)
    _add_network_health(router, services)
    _add_history(router, services)
    _add_alerts(router, services)
    add_templates(router, services)
    add_pool(router, services)
    return router


def _add_health(router: APIRouter, host: HostFigures) -> None:
    @router.get(
        "/health/system",
        summary="The host's figures, all in one",
        description="`temperature` is left out where there is no sensor. `status` is the worst of "
        "the parts': below 70 % healthy, up to 90 % a warning, above it critical, unless the "
        "settings say otherwise.",
        responses=refusals(),
    )
    async def get_system() -> System:
        return await host.system()


def _add_parts(router: APIRouter, host: HostFigures) -> None:
    @router.get("/health/cpu", summary="The processor", responses=refusals())
    async def get_cpu() -> Cpu:
        return await host.cpu()

    @router.get("/health/memory", summary="Memory", responses=refusals())
    async def get_memory() -> Memory:
        return await host.memory()

    @router.get("/health/disk", summary="Filesystems that hold data", responses=refusals())
    async def get_disk() -> Disks:
        return await host.disk()

    @router.get("/health/network", summary="Network interfaces", responses=refusals())
    async def get_network() -> Network:
        return await host.network()

    @router.get(
        "/health/temperature",
        summary="The hottest sensor; nulls where the host has none",
        responses=refusals(),
    )
    async def get_temperature() -> Temperature:
        return await host.temperature()


def _add_network_health(router: APIRouter, services: Services) -> None:
    settings = services.settings
    probe = NetworkProbe(settings.vm_network, settings.slots)

    @router.get(
        "/health/network-health",
        summary="Whether the network that VMs need is there, and what to do if not",
        responses=refusals(),
    )
    async def get_network_health() -> NetworkHealth:
        return await probe.report()


def _add_history(router: APIRouter, services: Services) -> None:
    @router.get(
        "/health/history",
        summary="The host's figures over the last hours, oldest first",
        description="Where there are more samples than `points`, the time since the first of them "
        "is cut in as many pieces, and the last sample of each is told.",
        responses=refusals(422),
    )
    async def get_history(
        hours: Hours = 24,
        points: Annotated[int, Query(ge=1, le=MOST_POINTS)] = 300,
    ) -> History:
        end = now()
        found = await services.samples.between(end - timedelta(hours=hours), end, points)
        return History(samples=[timed_sample(at, figures) for at, figures in found])


def _add_alerts(router: APIRouter, services: Services) -> None:
    @router.get(
        "/alerts",
        summary="Alerts that stand, and those that stood within the last hours, newest first",
        responses=refusals(422),
    )
    async def get_alerts(
        hours: Hours = 24,
        limit: Annotated[int, Query(ge=1, le=MOST_ALERTS)] = 100,
    ) -> AlertsReport:
        standing = await services.alerts.standing()
        past = await services.alerts.history(now() - timedelta(hours=hours), limit)
        return AlertsReport(
            standing=[AlertReport.of(each) for each in standing],
            history=[AlertReport.of(each) for each in past],
        )

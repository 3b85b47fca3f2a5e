"""Calls for operators: the host's health and history, alerts, templates, images, webhooks."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from polydev.controller.api.deployments import add_deployments
from polydev.controller.api.documented_errors import error_responses
from polydev.controller.api.history import Hours, add_history
from polydev.controller.api.images import add_images
from polydev.controller.api.overview import add_overview
from polydev.controller.api.pool import add_pool
from polydev.controller.api.processes import add_processes
from polydev.controller.api.templates import add_templates
from polydev.controller.api.url_numbers import WholeNumber
from polydev.controller.api.webhooks import add_webhooks
from polydev.controller.app_services import Services
from polydev.controller.auth.authentication import BEARER, operator_of
from polydev.controller.entities import now
from polydev.controller.host.network_checks import NetworkChecks
from polydev.controller.host.system_monitor import SystemMonitor
from polydev.controller.host.system_status import (
    AlertReport,
    AlertsReport,
    CpuStatus,
    DisksStatus,
    MemoryStatus,
    NetworkHealth,
    NetworkStatus,
    SystemStatus,
    TemperatureStatus,
)

MOST_ALERTS = 1000


def routes(services: Services) -> APIRouter:
    router = APIRouter(
        prefix="/api/admin", tags=["admin"], dependencies=[BEARER, Depends(operator_of)]
    )
    host = services.sample_loop.host
    _add_health(router, host)
    _add_parts(router, host)
    _add_network_health(router, services)
    add_history(router, services)
    _add_alerts(router, services)
    add_overview(router, services)
    add_processes(router, services)
    add_templates(router, services)
    add_pool(router, services)
    add_images(router, services)
    add_deployments(router)
    add_webhooks(router, services)
    return router


def _add_health(router: APIRouter, host: SystemMonitor) -> None:
    @router.get(
        "/health/system",
        summary="All metrics of the host",
        description="`temperature` is missing without a sensor. `status` is the worst status of "
        "the parts. By default a part is healthy below 70 %, has a warning up to 90 %, and is "
        "critical above.",
        responses=error_responses(),
    )
    async def get_system() -> SystemStatus:
        return await host.system()


def _add_parts(router: APIRouter, host: SystemMonitor) -> None:
    @router.get("/health/cpu", summary="The processor", responses=error_responses())
    async def get_cpu() -> CpuStatus:
        return await host.cpu()

    @router.get("/health/memory", summary="Memory", responses=error_responses())
    async def get_memory() -> MemoryStatus:
        return await host.memory()

    @router.get("/health/disk", summary="Filesystems that hold data", responses=error_responses())
    async def get_disk() -> DisksStatus:
        return await host.disk()

    @router.get("/health/network", summary="Network interfaces", responses=error_responses())
    async def get_network() -> NetworkStatus:
        return await host.network()

    @router.get(
        "/health/temperature",
        summary="The hottest sensor; nulls without a sensor",
        responses=error_responses(),
    )
    async def get_temperature() -> TemperatureStatus:
        return await host.temperature()


def _add_network_health(router: APIRouter, services: Services) -> None:
    settings = services.settings
    probe = NetworkChecks(settings.vm_network, settings.slots)

    @router.get(
        "/health/network-health",
        summary="Checks of the VMs' network, each with what to do if it fails",
        responses=error_responses(),
    )
    async def get_network_health() -> NetworkHealth:
        return await probe.report()


def _add_alerts(router: APIRouter, services: Services) -> None:
    @router.get(
        "/alerts",
        summary="Active alerts, and those of the last hours, newest first",
        responses=error_responses(422),
    )
    async def get_alerts(
        hours: Hours = 24,
        limit: Annotated[WholeNumber, Query(ge=1, le=MOST_ALERTS)] = 100,
    ) -> AlertsReport:
        standing = await services.alerts.standing()
        past = await services.alerts.history(now() - timedelta(hours=hours), limit)
        return AlertsReport(
            standing=[AlertReport.of(each) for each in standing],
            history=[AlertReport.of(each) for each in past],
        )

"""The health report, which needs no token, and the metrics for Prometheus."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

import polydev
from polydev.controller.api.documented_errors import error_responses
from polydev.controller.app_services import Services
from polydev.controller.auth.authentication import BEARER, AskingOperator
from polydev.controller.health import HealthReport
from polydev.controller.migrations import HEAD
from polydev.controller.url_paths import HEALTH_PATH

HEALTHY = {
    "status": "healthy",
    "release": "20261121_101500-07af4b7",
    "version": polydev.__version__,
    "uptimeSeconds": 12.5,
    "components": {
        "database": {
            "status": "healthy",
            "detail": f"at revision {HEAD}",
            "revision": HEAD,
            "expectedRevision": HEAD,
        },
        "imageStore": {"status": "healthy", "detail": "golden image 4f1d", "golden": "4f1d"},
    },
}
UNHEALTHY = {
    **HEALTHY,
    "status": "unhealthy",
    "components": {
        "database": {
            "status": "unhealthy",
            "detail": f"never migrated, this release needs {HEAD}: run master-controller migrate",
            "revision": None,
            "expectedRevision": HEAD,
        },
        "imageStore": {
            "status": "degraded",
            "detail": "no golden image: golden-rootfs.ext4 is missing",
            "golden": None,
        },
    },
}


def routes(services: Services) -> APIRouter:
    router = APIRouter(tags=["health"])
    _add_health(router, services)
    _add_metrics(router, services)
    return router


def _add_health(router: APIRouter, services: Services) -> None:
    def answer(example: dict[str, Any], description: str) -> dict[str, Any]:
        content = {"application/json": {"example": example}}
        return {"model": HealthReport, "description": description, "content": content}

    too_large = error_responses()[413]

    @router.get(
        HEALTH_PATH,
        response_model=HealthReport,
        summary="Health of the controller and of its dependencies; needs no token",
        responses={
            200: answer(HEALTHY, "Healthy"),
            503: answer(UNHEALTHY, "Unhealthy: a required component is down"),
            413: too_large,
        },
    )
    async def get_health(response: Response) -> HealthReport:
        report = await services.health.report()
        response.status_code = 200 if report.status == "healthy" else 503
        return report


def _add_metrics(router: APIRouter, services: Services) -> None:
    metrics = services.metrics

    @router.get(
        "/metrics",
        response_class=Response,
        summary="Metrics for Prometheus; for operators",
        dependencies=[BEARER],
        responses={
            200: {"content": {"text/plain": {"example": "polydev_controller_up 1\n"}}},
            **error_responses(),
        },
    )
    async def get_metrics(_caller: AskingOperator) -> Response:
        database = await services.health.database()
        metrics.database_up.set(database.status != "unhealthy")
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

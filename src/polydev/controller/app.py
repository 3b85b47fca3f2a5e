"""The application: routes, errors and middleware put together."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

import polydev
from polydev.controller.database import create_engine
from polydev.controller.health import Health, HealthReport
from polydev.controller.metrics import Metrics
from polydev.controller.middleware import HEALTH_PATH, BodyLimit, Requests
from polydev.controller.migrations import HEAD
from polydev.controller.problems import EXAMPLE, MEDIA_TYPE, Problem, answer_problem
from polydev.controller.release import release_id
from polydev.controller.settings import Settings
from polydev.errors import Error

PROBLEM = {
    "description": "What went wrong, as RFC 9457 problem details",
    "content": {MEDIA_TYPE: {"schema": Problem.model_json_schema(), "example": EXAMPLE}},
}
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


def create_app(settings: Settings) -> FastAPI:
    """The ASGI application. Nothing is opened before it starts or is asked."""
    started = time.monotonic()
    release = release_id(settings.release_file)
    health = Health(create_engine(settings.database_url), settings.image_store, release, started)
    metrics = Metrics(release, started)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await health.engine.dispose()

    app = FastAPI(
        title="Polydev controller",
        description="Sessions on browser VMs.",
        version=polydev.__version__,
        lifespan=lifespan,
        redoc_url=None,
        responses={"default": PROBLEM},
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    for kind in (Error, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, answer_problem)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(Requests, metrics=metrics)
    _add_health(app, health)
    _add_metrics(app, health, metrics)
    return app


def _add_health(app: FastAPI, health: Health) -> None:
    def answer(example: dict[str, Any], description: str) -> dict[str, Any]:
        content = {"application/json": {"example": example}}
        return {"model": HealthReport, "description": description, "content": content}

    @app.get(
        HEALTH_PATH,
        response_model=HealthReport,
        summary="Health of the service and of what it depends on",
        tags=["health"],
        responses={
            200: answer(HEALTHY, "All that matters is up"),
            503: answer(UNHEALTHY, "Something that matters is down"),
        },
    )
    async def get_health(response: Response) -> HealthReport:
        report = await health.report()
        response.status_code = 200 if report.status == "healthy" else 503
        response.headers["Cache-Control"] = "no-store"
        return report


def _add_metrics(app: FastAPI, health: Health, metrics: Metrics) -> None:
    @app.get(
        "/metrics",
        response_class=Response,
        summary="Figures for Prometheus",
        tags=["health"],
        responses={200: {"content": {"text/plain": {"example": "polydev_controller_up 1\n"}}}},
    )
    async def get_metrics() -> Response:
        database = await health.database()
        metrics.database_up.set(database.status != "unhealthy")
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

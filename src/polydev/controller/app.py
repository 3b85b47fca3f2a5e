"""The application: routes, error handlers and middleware put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

import polydev
from polydev.controller.api import (
    admin,
    credential_log,
    credentials,
    docs,
    events,
    health,
    login,
    novnc,
    providers,
    session_links_and_tickets,
    sessions,
    sign_in_links,
    tokens,
    usage,
    vms,
)
from polydev.controller.api.documented_errors import problem_schemas
from polydev.controller.app_services import Services, build_services
from polydev.controller.body_limit import BodyLimit
from polydev.controller.cors import Cors
from polydev.controller.machines.hypervisor import Hypervisor
from polydev.controller.middleware import Failures, Gate, Head, Requests
from polydev.controller.problem_details import answer_problem
from polydev.controller.settings import ControllerSettings
from polydev.controller.web import router
from polydev.controller.web.assets import Assets
from polydev.controller.web.page_rendering import Pages
from polydev.errors import Error

ROUTERS = (
    *(health, providers, sessions, session_links_and_tickets, sign_in_links, events, login),
    *(credential_log, credentials, vms, novnc, usage, tokens, admin),
)


class ControllerApp(FastAPI):
    """FastAPI, with the schemas of problem details in its documentation."""

    def openapi(self) -> dict[str, Any]:
        described = super().openapi()
        described["components"]["schemas"].update(problem_schemas())
        return described


def create_app(
    settings: ControllerSettings,
    hypervisor: Hypervisor | None = None,
    packed_assets: Path | None = None,
) -> FastAPI:
    """Return the ASGI application; its services are `app.state.services`.

    `packed_assets` has the pages' third-party files, which a wheel brings with it.

    Nothing is opened before the first request, and no work runs in the background before
    `Services.begin`: `master-controller health` only asks for the health report.
    """
    services = build_services(settings, hypervisor)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await services.close()

    app = ControllerApp(
        title="Polydev controller",
        description="Sessions on browser VMs.",
        version=polydev.__version__,
        lifespan=lifespan,
        docs_url=None,  # that page would load scripts from another site
        redoc_url=None,
        openapi_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.services = services
    pages = Pages(services.browser_rules, settings.web, Assets(packed_assets))
    app.state.pages = pages
    for kind in (Error, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, answer_problem)
    _add_middleware(app, services)
    routers = [module.routes(services) for module in ROUTERS]
    routers += [docs.routes(app.openapi), router.routes(services, pages)]
    for each in routers:
        # Not include_router, which makes each route again, at the first request.
        app.router.routes.extend(each.routes)
    return app


def _add_middleware(app: FastAPI, services: Services) -> None:
    """Add the middleware; the last one is the outermost."""
    app.add_middleware(Head)
    app.add_middleware(BodyLimit, max_bytes=services.settings.max_body_bytes)
    app.add_middleware(
        Gate,
        authenticator=services.authenticator,
        limiter=services.request_limiter,
        rules=services.browser_rules,
    )
    app.add_middleware(Failures)
    if services.settings.cors_origins:
        app.add_middleware(Cors, origins=services.settings.cors_origins)
    app.add_middleware(Requests, metrics=services.metrics)

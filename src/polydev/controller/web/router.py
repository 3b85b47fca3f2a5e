"""All pages and their files as one router."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from polydev.controller.app_services import Services
from polydev.controller.web import (
    alert_pages,
    dashboard_page,
    deployment_pages,
    image_pages,
    session_page,
    sign_in,
    start_page,
    user_pages,
    vm_pages,
)
from polydev.controller.web.page_rendering import Pages


def routes(services: Services, pages: Pages) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/static/{digest}/{name:path}")
    async def get_asset(request: Request, digest: str, name: str) -> Response:
        return pages.assets.answer(request, digest, name)

    @router.get("/favicon.ico")
    async def get_icon() -> Response:
        return RedirectResponse(pages.assets.url("icon.svg"))

    for module in (
        sign_in,
        start_page,
        session_page,
        dashboard_page,
        vm_pages,
        user_pages,
        image_pages,
        deployment_pages,
        alert_pages,
    ):
        router.routes.extend(module.routes(services, pages).routes)
    return router

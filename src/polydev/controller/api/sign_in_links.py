"""Links that sign a browser in as the caller who made them, once."""

from __future__ import annotations

from datetime import datetime
from urllib.parse import urlencode

from fastapi import APIRouter
from pydantic import ConfigDict

from polydev.controller.api.documented_errors import error_responses
from polydev.controller.api_model import ApiModel
from polydev.controller.app_services import Services
from polydev.controller.auth.authentication import BEARER, Asking
from polydev.errors import NotAllowed

LINK_SECONDS = 120.0
CODE = "CxEgbaMXQm2p5Xo4b0F2d0VJkq3b1sM7c9aZr8nT1yU"


class LinkAnswer(ApiModel):
    """`url` signs a browser in, once. Browsers do not send the part behind `#` to servers."""

    model_config = ConfigDict(
        title="SignInLink",
        json_schema_extra={
            "examples": [{"url": f"/login#code={CODE}", "expiresAt": "2026-11-21T10:17:00Z"}]
        },
    )

    url: str
    expires_at: datetime


def routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/api/auth", tags=["sessions"])

    @router.post(
        "/sign-in-link",
        status_code=201,
        summary="Make a link that signs a browser in as the caller, once",
        dependencies=[BEARER],
        responses=error_responses(),
    )
    async def create_link(caller: Asking) -> LinkAnswer:
        if caller.by not in ("token", "jwt"):
            raise NotAllowed("access denied: a sign-in link can only be made with a token or a JWT")
        code, until = await services.tickets.create("sign-in", caller, LINK_SECONDS)
        return LinkAnswer(url=f"/login#{urlencode({'code': code})}", expires_at=until)

    return router

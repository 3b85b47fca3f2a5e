"""Tokens of users: admins revoke them."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import structlog
from fastapi import APIRouter

from polydev.controller.api.documented_errors import error_responses
from polydev.controller.api_model import ApiModel
from polydev.controller.app_services import Services
from polydev.controller.auth.authentication import BEARER, AskingAdmin
from polydev.controller.entities import Token

log = structlog.stdlib.get_logger(__name__)


class TokenAnswer(ApiModel):
    """A token's description. The token itself is stored as a hash only."""

    id: str
    user_id: str
    name: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    used_at: datetime | None

    @classmethod
    def of(cls, token: Token) -> TokenAnswer:
        return cls(**vars(token))


def routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/api/admin", tags=["admin"], dependencies=[BEARER])

    @router.delete(
        "/tokens/{token_id}",
        summary="Revoke a token; for admins",
        responses=error_responses(404, 422),
    )
    async def revoke_token(token_id: UUID, admin: AskingAdmin) -> TokenAnswer:
        token = await services.tokens.revoke(str(token_id))
        log.info("token_revoked", token_id=token.id, of_user=token.user_id, by=admin.user_id)
        return TokenAnswer.of(token)

    return router

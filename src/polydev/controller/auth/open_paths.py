"""Paths that need no token, and those that may have it in the query."""

from __future__ import annotations

import re

from starlette.types import Scope

from polydev.controller.auth.csrf import shows_session_by_ticket
from polydev.controller.url_paths import HEALTH_PATH, STATIC_PREFIX

OPEN_PATHS = (
    *(HEALTH_PATH, "/api/auth/redeem"),
    *("/login", "/login/code", "/login/state", "/favicon.ico"),
)
# Browsers cannot set headers for these: they may send the token in the query.
QUERY_TOKEN_PATHS = re.compile(r"/docs|/api/auth/session/[^/]+/events")


def is_open(scope: Scope) -> bool:
    """Whether the path needs no caller: it reveals nothing, or its route checks by itself."""
    path = scope["path"]
    if path in OPEN_PATHS or path.startswith(STATIC_PREFIX):
        return True
    # The page is empty until its script exchanges the ticket.
    return shows_session_by_ticket(scope)

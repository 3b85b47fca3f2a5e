"""Paths of the API and of the pages that more than one part of the controller names."""

from __future__ import annotations

HEALTH_PATH = "/api/auth/health"
STATIC_PREFIX = "/static/"


def session_path(session_id: str) -> str:
    return f"/api/auth/session/{session_id}"


def screen_path(session_id: str) -> str:
    """Return the path of the WebSocket that shows a session's screen."""
    return f"{session_path(session_id)}/novnc/websock"


def viewer_page(session_id: str) -> str:
    """Return the path of the page that shows a session."""
    return f"/session/{session_id}"

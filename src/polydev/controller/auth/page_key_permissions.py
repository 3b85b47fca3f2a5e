"""Limit a page's key to requests about its session, and a spectator's key to watching."""

from __future__ import annotations

from polydev.controller.entities import Caller
from polydev.controller.url_paths import session_path
from polydev.errors import NotAllowed

SPECTATORS = {("GET", ""), ("GET", "/events"), ("POST", "/tickets")}


def check_scope(caller: Caller, method: str, path: str) -> None:
    """Raise NotAllowed if the caller's key is not for this request."""
    if caller.session_id is None:
        return
    within = path.removeprefix(session_path(caller.session_id))
    if within == path or not (within == "" or within.startswith("/")):
        raise NotAllowed("access denied: this page's key is for another session or request")
    if caller.view_only and ("GET" if method == "HEAD" else method, within) not in SPECTATORS:
        raise NotAllowed("access denied: this link is read-only", "ask its sender for access")

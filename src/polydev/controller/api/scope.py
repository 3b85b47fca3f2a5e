"""What the key of a page lets it ask for: its one session, and of a spectator's less."""

from __future__ import annotations

from polydev.controller.api.answers import session_path
from polydev.controller.model import Caller
from polydev.errors import NotAllowed

SPECTATORS = {("GET", ""), ("GET", "/events"), ("POST", "/tickets")}


def check_scope(caller: Caller, method: str, path: str) -> None:
    """Raises NotAllowed where the caller's key is for something else."""
    if caller.session_id is None:
        return
    within = path.removeprefix(session_path(caller.session_id))
    if within == path or not (within == "" or within.startswith("/")):
        raise NotAllowed("the page may show one session only, and this is not of it")
    if caller.view_only and ("GET" if method == "HEAD" else method, within) not in SPECTATORS:
        raise NotAllowed("the link lets its holder look only", "ask its maker for a session")

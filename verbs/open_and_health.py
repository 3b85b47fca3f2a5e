"""open, health: a controller's pages in a browser, and its host's health as text."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from typing import Any

from invoke.context import Context

from polydev.cli import answer, edge, stderr, task
from verbs.api_connection import API_HELP, connect, session_id_of
from verbs.text_tables import table_text

UNWELL = 2


@task(
    name="open",
    help={
        "session": "a session's id, or the start of it: its page instead of the dashboard; "
        "--session may be left out",
        "browser": "open the system's browser if there is one; --no-browser only prints the link",
        **API_HELP,
    },
)
@edge
def open_pages(
    context: Context,
    session: str = "",
    browser: bool = True,
    url: str = "",
    token: str = "",
    inventory: str = "",
    host: str = "",
    json: bool = False,
) -> None:
    """Open the dashboard, or a session's page, in a browser by a link that signs in once.

    With --inventory or --host the SSH tunnel stays open until Ctrl-C.
    """
    from polydev.client.open_in_browser import DASHBOARD, show_in_browser, sign_in_link

    with connect(url, token, inventory, host) as api:
        path = DASHBOARD
        if session:
            path = f"/session/{session_id_of(api, session)}"
        link = sign_in_link(api, path)
        is_shown = browser and not json and show_in_browser(link.url)
        words = "opened in your browser" if is_shown else "open it in your browser"
        answer(
            {"url": link.url, "page": link.page, "expiresAt": link.expires_at, "opened": is_shown},
            as_json=json,
            text=f"{link.url}\n{words}: it signs in once, until {_clock(link.expires_at)} UTC",
        )
        if api.through_ssh:
            sys.stdout.flush()
            stderr.print("the tunnel stays open until Ctrl-C")
            with suppress(KeyboardInterrupt):  # the usual way to end it
                threading.Event().wait()


def _clock(at: str) -> str:
    """Return the time of day of a time in an answer."""
    return at[11:19]


@task(help=API_HELP)
@edge
def health(
    context: Context,
    url: str = "",
    token: str = "",
    inventory: str = "",
    host: str = "",
    json: bool = False,
) -> None:
    """Show whether a host is healthy, and what to do if not: exit status 0 or 2."""
    with connect(url, token, inventory, host) as api:
        found = api.get("/api/admin/overview")
    answer(found, as_json=json, text=health_text(found))
    raise SystemExit(0 if found["status"] == "healthy" else UNWELL)


def health_text(found: dict[str, Any]) -> str:
    """Return the findings of an overview, the worst first, each with what to do."""
    if not found["findings"]:
        return "the host is healthy"
    rows = [
        [each["status"], _what(each), each["detail"], each["hint"]] for each in found["findings"]
    ]
    return f"the host is {found['status']}\n" + table_text(("", "what", "found", "to do"), rows)


def _what(finding: dict[str, Any]) -> str:
    is_one = finding["subject"] == "host"
    return str(finding["part"]) if is_one else f"{finding['part']} {finding['subject']}"

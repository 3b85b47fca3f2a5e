"""sessions, session.* and viewer: sessions of a host, over the controller's API."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from getpass import getpass
from typing import Any
from uuid import UUID

from invoke.context import Context

from polydev.cli import answer, edge, require_at_least, stderr, task
from polydev.errors import ConfigError
from polydev.validation import HIGHEST_PORT
from verbs.api_connection import API_HELP, connect, lab_demo_user, session_id_of
from verbs.paths_and_help import LAB_INVENTORY, LIMIT_HELP, MOST_SHOWN
from verbs.text_tables import minute, newest_text, short
from verbs.users_and_tokens import USER_HELP, host_controller


@task(help={"all": "those that are over too", "limit": LIMIT_HELP, **API_HELP})
@edge
def sessions(
    context: Context,
    all: bool = False,
    limit: int = MOST_SHOWN,
    url: str = "",
    token: str = "",
    inventory: str = "",
    host: str = "",
    json: bool = False,
) -> None:
    """List sessions and their states, newest first."""
    require_at_least(1, "limit", limit)
    with connect(url, token, inventory, host) as api:
        found = api.sessions(all_of_them=all, limit=limit + 1)
    columns = ("session", "user", "provider", "status", "stage", "VM", "since", "until", "reason")
    text = newest_text(columns, map(_session_row, found), limit, "no sessions", all_of_them=all)
    answer(found[:limit], as_json=json, text=text)


def _session_row(session: dict[str, Any]) -> list[object]:
    return [
        short(session["id"]),
        short(session["userId"]),
        session["provider"],
        session["status"],
        session["boot"]["stage"],
        short(session["vmId"]),
        minute(session["createdAt"]),
        minute(session["endedAt"] or session["expiresAt"]),
        session["reason"],
    ]


@task(
    positional=["session"],
    help={
        "session": "its id, or the start of it",
        "port": "port on this machine (default: a free one)",
        **API_HELP,
    },
)
@edge
def viewer(
    context: Context,
    session: str,
    port: int = 0,
    url: str = "",
    token: str = "",
    inventory: str = "",
    host: str = "",
    json: bool = False,
) -> None:
    """Open a port on this machine for a VNC program to show a session's screen.

    It stays open until the session ends or Ctrl-C. With --json the answer comes once it is open.
    """
    from polydev.client.vnc_proxy import HOST, VncProxy

    def tell(opened: int) -> None:
        where = f"{HOST}:{opened}"
        text = f"as in: vncviewer {HOST}::{opened}"
        answer({"session": session_id, "vnc": where}, as_json=json, text=text)
        sys.stdout.flush()

    if not 0 <= port <= HIGHEST_PORT:
        raise ConfigError(
            f"--port {port} is not a port", f"use 1 to {HIGHEST_PORT}, or 0 for a free one"
        )
    with connect(url, token, inventory, host) as api:
        session_id = session_id_of(api, session)
        try:
            with suppress(KeyboardInterrupt):  # the usual way to end it
                ended = asyncio.run(VncProxy(api, session_id, stderr.print).serve(port, tell))
                stderr.print(f"session {session_id} is {ended}")
        except OSError as error:
            raise ConfigError(
                f"cannot open port {port}: {error.strerror}", "choose another with --port"
            ) from error


@task(
    positional=["session"],
    help={
        "session": "its id, or the start of it",
        "again": "start the tool again, after a login that failed",
        **API_HELP,
    },
)
@edge
def login(
    context: Context,
    session: str,
    again: bool = False,
    url: str = "",
    token: str = "",
    inventory: str = "",
    host: str = "",
    json: bool = False,
) -> None:
    """Start the login of a session's tool, and show its URL once it is known."""
    from polydev.client.session_login import wait_for_url

    with connect(url, token, inventory, host) as api:
        found = wait_for_url(api, session_id_of(api, session), stderr.print, again=again)
    answer(found, as_json=json, text=_login_text(found))


@task(
    name="code",
    positional=["session"],
    help={
        "session": "its id, or the start of it",
        "code": "what the login's page shows (default: the verb asks for it, so "
        "that no shell history has it)",
        **API_HELP,
    },
)
@edge
def give_code(
    context: Context,
    session: str,
    code: str = "",
    url: str = "",
    token: str = "",
    inventory: str = "",
    host: str = "",
    json: bool = False,
) -> None:
    """Give a session's tool the code that the login page shows."""
    if not code:
        code = getpass("code: ") if sys.stdin.isatty() else sys.stdin.readline()
    with connect(url, token, inventory, host) as api:
        session_id = session_id_of(api, session)
        api.post(f"/api/auth/session/{session_id}/oauth-code", {"code": code.strip()})
    text = (
        f"the tool got the code; ./inv session.login {session_id[:8]} shows the state of the login"
    )
    answer({"sessionId": session_id, "typed": True}, as_json=json, text=text)


def _login_text(login: dict[str, Any]) -> str:
    if login["status"] == "done":
        return f"{login['provider']} is logged in"
    code = f"code to enter: {login['deviceCode']}" if login.get("deviceCode") else ""
    return "\n".join(filter(None, (login["url"], code)))


@task(
    name="start",
    help={
        "user": f"whose it is (default on the lab: its demo user): {USER_HELP}",
        "provider": "whose tool (default: claude): ./inv providers.list shows them",
        "key": "idempotency key: a repeated call with it starts no second session",
        "stored": "give the tool the credentials that its user has stored",
        "recipient": "public key age1…: only its owner can open the credentials of the login",
        **API_HELP,
    },
)
@edge
def start_session(
    context: Context,
    user: str = "",
    provider: str = "claude",
    key: str = "",
    stored: bool = False,
    recipient: str = "",
    url: str = "",
    token: str = "",
    inventory: str = "",
    host: str = "",
    json: bool = False,
) -> None:
    """Start a session on a VM of its own; ./inv sessions shows its progress."""
    with connect(url, token, inventory, host) as api:
        user_id = session_user(user, url, inventory, host)
        headers = {"Idempotency-Key": key} if key else {}
        body: dict[str, Any] = {"userId": user_id, "provider": provider}
        if stored:
            body["useStoredCredentials"] = True
        if recipient:
            body["credentialsRecipient"] = recipient
        started = api.post("/api/auth/start", body, headers)
    text = f"session {started['id']} of {user_id} is {started['status']}\nnext: ./inv sessions"
    answer(started, as_json=json, text=text)


def session_user(user: str, url: str, inventory: str, host: str) -> str:
    """Return the id of a user; names and beginnings of ids are looked up on the host."""
    try:
        return str(UUID(user))
    except ValueError:
        pass
    is_elsewhere = url or (os.environ.get("POLYDEV_URL") and not (inventory or host))
    if is_elsewhere:
        raise ConfigError(
            f"{user!r} is not the id of a user" if user else "no user is named",
            "give the whole id with --user; names need --inventory instead of --url",
        )
    if not user and not (inventory or host):
        return lab_demo_user()
    if not user:
        raise ConfigError("no user is named", "name one with --user; ./inv user.list lists them")
    found = host_controller(inventory or LAB_INVENTORY, host).ask("user", "show", user)
    return str(found["id"])


@task(
    name="end", positional=["session"], help={"session": "its id, or the start of it", **API_HELP}
)
@edge
def end_session(
    context: Context,
    session: str,
    url: str = "",
    token: str = "",
    inventory: str = "",
    host: str = "",
    json: bool = False,
) -> None:
    """End a session and its VM."""
    with connect(url, token, inventory, host) as api:
        ended = api.delete(f"/api/auth/session/{session_id_of(api, session)}")
    answer(ended, as_json=json, text=f"session {ended['id']} is {ended['status']}")

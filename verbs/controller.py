"""What runs on a controller: sessions, VMs, consoles, over its API."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any

from invoke.context import Context
from invoke.tasks import task

from polydev.cli import answer, edge, stderr
from polydev.errors import ConfigError
from polydev.settings import Settings
from verbs.hosts import described_host
from verbs.places import JSON_HELP, LAB_INVENTORY, lab_name
from verbs.tables import minute, more_text, short, table_text

if TYPE_CHECKING:
    from polydev.client.access import Access
    from polydev.client.api import ControllerApi
    from polydev.lab import Lab

URL_HELP = "address of the controller (default: POLYDEV_URL, or the lab's)"
API_HELP = {
    "url": URL_HELP,
    "token": "an operator's token (default: POLYDEV_TOKEN, or the lab's, which ./inv up makes)",
    "json": JSON_HELP,
}
MOST_SHOWN = 50
LIMIT_HELP = f"how many of the newest (default: {MOST_SHOWN})"
LOST_HINT = "see ./inv sessions --all, ./inv vms --all"


def controller_url(address: str) -> str:
    return f"http://{address}:4000"


def connect(url: str, token: str) -> ControllerApi:
    """The API that is meant: as told, by the environment, or the lab's.

    A lab's own token goes to the lab only, never to an address that was given.
    """
    from polydev.client.api import ControllerApi

    url = url or os.environ.get("POLYDEV_URL", "")
    token = token or os.environ.get("POLYDEV_TOKEN", "")
    if not url:
        url, of_lab = _lab_operator()
        token = token or of_lab
    if not token:
        raise ConfigError(
            f"no token for {url}",
            "./inv up makes one for the lab; for another host, ./inv token.create --inventory FILE "
            "--user ID --name NAME, then POLYDEV_TOKEN or --token",
        )
    return ControllerApi(url, token)


def _lab_operator() -> tuple[str, str]:
    """The lab's address, and the token of its operator or nothing."""
    from polydev.client.access import stored_access
    from polydev.lab import find

    lab = find(lab_name(), Settings.from_environment())
    if lab is None:
        raise ConfigError(
            f"no lab {lab_name()} runs, and no other controller is named",
            "./inv up starts the lab; another controller is named by POLYDEV_URL or --url",
        )
    access = stored_access(lab.folder)
    return controller_url(lab.address), access.operator.token if access else ""


def lab_access(lab: Lab) -> Access:
    """The users of a deployed lab with tokens that count, made now if need be."""
    from polydev.client.access import ensure_access
    from polydev.client.api import ControllerApi
    from polydev.client.on_host import HostController

    def is_valid(token: str) -> bool:
        with ControllerApi(controller_url(lab.address), token) as api:
            return api.takes_token()

    _, described = described_host(LAB_INVENTORY, f"lab-{lab.name}")
    return ensure_access(lab.folder, HostController(described.target).ask, is_valid)


def access_fields(lab: Lab, access: Access) -> dict[str, str]:
    """What `where` and `up` say of a lab's demo user."""
    return {
        "url": controller_url(lab.address),
        "userId": access.demo.user_id,
        "token": access.demo.token,
    }


@task(help={"all": "those that are over too", "limit": LIMIT_HELP, **API_HELP})
@edge
def sessions(
    context: Context,
    all: bool = False,
    limit: int = MOST_SHOWN,
    url: str = "",
    token: str = "",
    json: bool = False,
) -> None:
    """Sessions, newest first, and how far each is."""
    with connect(url, token) as api:
        found = api.sessions(all_of_them=all, limit=limit + 1)
    shown = found[:limit]
    columns = ("session", "user", "provider", "status", "stage", "VM", "since", "until", "reason")
    text = table_text(columns, map(_session_row, shown)) if shown else "no sessions"
    answer(shown, as_json=json, text=text + more_text(len(found) > limit, limit, all_of_them=all))


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


@task(help={"all": "those that are gone too", "limit": LIMIT_HELP, **API_HELP})
@edge
def vms(
    context: Context,
    all: bool = False,
    limit: int = MOST_SHOWN,
    url: str = "",
    token: str = "",
    json: bool = False,
) -> None:
    """VMs, newest first, and how far each is."""
    with connect(url, token) as api:
        found = api.vms(all_of_them=all, limit=limit + 1)
    shown = found[:limit]
    columns = ("VM", "slot", "address", "status", "stage", "image", "since")
    text = table_text(columns, map(_vm_row, shown)) if shown else "no VMs"
    answer(shown, as_json=json, text=text + more_text(len(found) > limit, limit, all_of_them=all))


def _vm_row(vm: dict[str, Any]) -> list[object]:
    return [
        short(vm["vmId"]),
        vm["slot"],
        vm["vmIP"],
        vm["status"],
        vm["stage"],
        vm["imageDigest"][:12],
        minute(vm["createdAt"]),
    ]


@task(
    positional=["vm"],
    help={
        "vm": "a VM's id, or the start of it",
        "follow": "go on with what comes, until the VM ends or Ctrl-C",
        "lines": "how many of the last lines (default: 100)",
        **API_HELP,
    },
)
@edge
def console(
    context: Context,
    vm: str,
    follow: bool = False,
    lines: int = 100,
    url: str = "",
    token: str = "",
    json: bool = False,
) -> None:
    """What a VM's serial console says."""
    from polydev.client.api import one_with_prefix, plain_lines

    if follow and json:
        raise ConfigError("--follow has no end, --json has one", "leave one of them out")
    with connect(url, token) as api:
        ids = [each["vmId"] for each in api.vms(all_of_them=True)]
        path = f"/api/vm/{one_with_prefix(ids, vm, 'VM', LOST_HINT)}/console"
        if follow:
            for line in plain_lines(api.text_parts(path, tail=lines, follow="true")):
                print(line, flush=True)
            return
        found = api.get(path, tail=lines)
    answer(found, as_json=json, text="\n".join(plain_lines(f"{line}\n" for line in found["lines"])))


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
    json: bool = False,
) -> None:
    """Lead a VNC program on this machine to a session's screen, until the session ends or Ctrl-C.

    With --json the address is told as soon as the port is open.
    """
    from polydev.client.viewer import HOST, Viewer

    def tell(opened: int) -> None:
        where = f"{HOST}:{opened}"
        text = f"as in: vncviewer {HOST}::{opened}"
        answer({"session": session_id, "vnc": where}, as_json=json, text=text)
        sys.stdout.flush()

    with connect(url, token) as api:
        session_id = _session_id(api, session)
        try:
            ended = asyncio.run(Viewer(api, session_id, stderr.print).serve(port, tell))
        except OSError as error:
            raise ConfigError(
                f"port {port} cannot be opened: {error.strerror}", "choose another with --port"
            ) from error
    stderr.print(f"session {session_id} is {ended}")


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
    json: bool = False,
) -> None:
    """Start the login of a session's tool, wait for its URL, and say it."""
    from polydev.client.login import wait_for_url

    with connect(url, token) as api:
        found = wait_for_url(api, _session_id(api, session), stderr.print, again=again)
    text = found["url"] or f"{found['provider']} is logged in"
    answer(found, as_json=json, text=text)


def _session_id(api: ControllerApi, session: str) -> str:
    from polydev.client.api import one_with_prefix

    ids = [each["id"] for each in api.sessions(all_of_them=True)]
    return one_with_prefix(ids, session, "session", LOST_HINT)


@task(
    name="end", positional=["session"], help={"session": "its id, or the start of it", **API_HELP}
)
@edge
def end_session(
    context: Context, session: str, url: str = "", token: str = "", json: bool = False
) -> None:
    """End a session and its VM."""
    with connect(url, token) as api:
        ended = api.delete(f"/api/auth/session/{_session_id(api, session)}")
    answer(ended, as_json=json, text=f"session {ended['id']} is {ended['status']}")

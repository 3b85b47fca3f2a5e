"""sessions, vms, console: what runs on a controller, over its API."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from invoke.context import Context

from polydev.cli import answer, edge, require_at_least, task
from polydev.errors import ConfigError
from verbs.connection import API_HELP, connect
from verbs.text_tables import minute, more_text, short, table_text

LOST_HINT = "see ./inv sessions --all, ./inv vms --all"
MOST_SHOWN = 50
LIMIT_HELP = f"how many of the newest (default: {MOST_SHOWN})"


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
    inventory: str = "",
    host: str = "",
    json: bool = False,
) -> None:
    """List VMs and their states, newest first."""
    require_at_least(1, "limit", limit)
    with connect(url, token, inventory, host) as api:
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
        _status(vm),
        vm["stage"],
        vm["imageDigest"][:12],
        minute(vm["createdAt"]),
    ]


def _status(vm: dict[str, Any]) -> str:
    words = {"pooled": vm["pooled"], "paused": vm["pausedAt"]}
    return ", ".join([vm["status"], *(word for word, is_so in words.items() if is_so)])


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
    inventory: str = "",
    host: str = "",
    json: bool = False,
) -> None:
    """Show a VM's serial console."""
    from polydev.client.controller_api import one_with_prefix, plain_lines

    if follow and json:
        raise ConfigError("--follow and --json exclude each other", "remove one of them")
    require_at_least(0, "lines", lines)
    with connect(url, token, inventory, host) as api:
        ids = [each["vmId"] for each in api.vms(all_of_them=True)]
        path = f"/api/vm/{one_with_prefix(ids, vm, 'VM', LOST_HINT)}/console"
        if follow:
            with suppress(KeyboardInterrupt):  # the usual way to end it
                for line in plain_lines(api.text_parts(path, tail=lines, follow="true")):
                    print(line, flush=True)
            return
        found = api.get(path, tail=lines)
    if json:
        answer(found, as_json=True, text="")
        return
    for line in plain_lines(f"{line}\n" for line in found["lines"]):
        print(line)  # as the VM wrote it

"""vms, console, screenshot: the VMs of a host, over the controller's API."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from invoke.context import Context

from polydev.cli import answer, edge, require_at_least, task
from polydev.errors import ConfigError
from verbs.api_connection import API_HELP, connect, vm_id_of
from verbs.paths_and_help import LIMIT_HELP, MOST_SHOWN
from verbs.text_tables import minute, newest_text, short


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
    columns = ("VM", "slot", "address", "status", "stage", "image", "since")
    text = newest_text(columns, map(_vm_row, found), limit, "no VMs", all_of_them=all)
    answer(found[:limit], as_json=json, text=text)


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
    from polydev.client.controller_api import plain_lines

    if follow and json:
        raise ConfigError("--follow and --json exclude each other", "remove one of them")
    require_at_least(0, "lines", lines)
    with connect(url, token, inventory, host) as api:
        path = f"/api/vm/{vm_id_of(api, vm, all_of_them=True)}/console"
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


@task(
    positional=["vm"],
    help={
        "vm": "a VM's id, or the start of it",
        "output": "the PNG file to write (default: VM.png)",
        **API_HELP,
    },
)
@edge
def screenshot(
    context: Context,
    vm: str,
    output: str = "",
    url: str = "",
    token: str = "",
    inventory: str = "",
    host: str = "",
    json: bool = False,
) -> None:
    """Save a VM's screen as PNG. A paused VM stays paused."""
    with connect(url, token, inventory, host) as api:
        vm_id = vm_id_of(api, vm, all_of_them=False)
        picture = api.content(f"/api/vm/{vm_id}/screenshot")
    file = Path(output or f"{vm_id}.png")
    try:
        file.write_bytes(picture)
    except OSError as error:
        raise ConfigError(
            f"cannot write {file}: {error.strerror}", "choose another file with --output"
        ) from error
    answer(
        {"vmId": vm_id, "file": str(file), "bytes": len(picture)},
        as_json=json,
        text=f"{file} has the screen of VM {vm_id}",
    )

"""usage, screenshot: what users use of a host, and the present screen of a VM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from invoke.context import Context

from polydev.cli import answer, edge, require_at_least, task
from polydev.errors import ConfigError
from verbs.connection import API_HELP, connect
from verbs.controller import LOST_HINT
from verbs.sessions import session_user
from verbs.text_tables import short, table_text
from verbs.users_and_tokens import USER_HELP

HOUR_SECONDS = 3600
GIBIBYTE = 1 << 30


@task(
    help={
        "user": f"only one: {USER_HELP}",
        "days": "how many days, today included (default: 30)",
        **API_HELP,
    }
)
@edge
def usage(
    context: Context,
    user: str = "",
    days: int = 30,
    url: str = "",
    token: str = "",
    inventory: str = "",
    host: str = "",
    json: bool = False,
) -> None:
    """Show users' VM and CPU hours, traffic, sessions, quotas. Needs an operator's token."""
    require_at_least(1, "days", days)
    with connect(url, token, inventory, host) as api:
        of_one = {"user": session_user(user, url, inventory, host)} if user else {}
        found = api.get("/api/admin/usage", days=days, **of_one)
    columns = ("user", "name", "sessions", "VM hours", "CPU hours", "received", "sent", "quotas")
    rows = [[short(each["userId"]), each["name"], *_use(each)] for each in found["users"]]
    text = table_text(columns, rows) if rows else "no users: ./inv user.add"
    answer(found, as_json=json, text=f"since {found['since']} (UTC)\n{text}")


def _use(user: dict[str, Any]) -> list[object]:
    used = user["total"]
    return [
        used["sessions"],
        f"{used['vmSeconds'] / HOUR_SECONDS:.1f}",
        f"{used['cpuSeconds'] / HOUR_SECONDS:.1f}",
        _gibibytes(used["receivedBytes"]),
        _gibibytes(used["sentBytes"]),
        ", ".join(f"{q['quota']} {q['used']:.1f}/{q['limit']:g}" for q in user["quotas"]),
    ]


def _gibibytes(size: int) -> str:
    """Return a size in the unit of the traffic quota."""
    return f"{size / GIBIBYTE:,.2f} GiB"


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
    from polydev.client.controller_api import one_with_prefix

    with connect(url, token, inventory, host) as api:
        ids = [each["vmId"] for each in api.vms(all_of_them=False)]
        vm_id = one_with_prefix(ids, vm, "VM", LOST_HINT)
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

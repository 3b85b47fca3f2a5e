"""usage: how much of a host its users use."""

from __future__ import annotations

from typing import Any

from invoke.context import Context

from polydev.cli import answer, edge, require_at_least, task
from verbs.api_connection import API_HELP, connect
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

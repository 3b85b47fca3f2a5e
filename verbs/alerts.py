"""alerts, alert.test: active and past alerts of a host, and a test of their receivers."""

from __future__ import annotations

from typing import Any

from invoke.context import Context

from polydev.cli import answer, edge, require_at_least, task
from verbs.api_connection import API_HELP, connect
from verbs.paths_and_help import LAB_INVENTORY
from verbs.text_tables import minute, table_text
from verbs.users_and_tokens import ON_HOST_HELP, host_controller

MOST_SHOWN = 50
TRIAL_SECONDS = 600.0


@task(
    help={
        "all": "those that were cleared within --hours too",
        "hours": "how far back --all looks (default: 24)",
        "limit": f"at most so many past alerts (default: {MOST_SHOWN})",
        **API_HELP,
    }
)
@edge
def alerts(
    context: Context,
    all: bool = False,
    hours: int = 24,
    limit: int = MOST_SHOWN,
    url: str = "",
    token: str = "",
    inventory: str = "",
    host: str = "",
    json: bool = False,
) -> None:
    """List the active alerts of a host. Needs an operator's token."""
    require_at_least(1, "hours", hours)
    require_at_least(1, "limit", limit)
    with connect(url, token, inventory, host) as api:
        found = api.get("/api/admin/alerts", hours=hours, limit=limit)
    shown = found["history"] if all else found["standing"]
    columns = ("severity", "rule", "subject", "since", "cleared", "message")
    none = "no active alerts" + ("" if all else " (--all shows past ones)")
    text = table_text(columns, map(_row, shown)) if shown else none
    answer(shown, as_json=json, text=text)


def _row(alert: dict[str, Any]) -> list[object]:
    times = [minute(alert["raised_at"]), minute(alert["cleared_at"])]
    return [alert["severity"], alert["rule"], alert["subject"], *times, alert["message"]]


@task(name="test", help=ON_HOST_HELP)
@edge
def try_alerts(
    context: Context, inventory: str = LAB_INVENTORY, host: str = "", json: bool = False
) -> None:
    """Send a test alert to each address of alert-urls: exit status 1 if one fails."""
    controller = host_controller(inventory, host)
    found = controller.ask("alert", "test", timeout_seconds=TRIAL_SECONDS)
    rows = [
        [each["target"], each["service"], "sent" if each["sent"] else "FAILED", each["said"]]
        for each in found
    ]
    answer(found, as_json=json, text=table_text(("URL", "service", "", "said"), rows))
    raise SystemExit(0 if all(each["sent"] for each in found) else 1)

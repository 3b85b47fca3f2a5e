"""webhooks, webhook.resend, webhook.try: deliveries to endpoints, and tests of endpoints."""

from __future__ import annotations

from typing import Any

from invoke.context import Context

from polydev.cli import answer, edge, require_at_least, task
from polydev.errors import ConfigError
from verbs.api_connection import API_HELP, connect
from verbs.paths_and_help import LIMIT_HELP, MOST_SHOWN
from verbs.text_tables import minute, more_text, table_text

PATH = "/api/admin/webhooks"


@task(
    help={
        "failed": "only those that failed for good",
        "endpoint": "only those of this endpoint",
        "limit": LIMIT_HELP,
        **API_HELP,
    }
)
@edge
def webhooks(
    context: Context,
    failed: bool = False,
    endpoint: str = "",
    limit: int = MOST_SHOWN,
    url: str = "",
    token: str = "",
    inventory: str = "",
    host: str = "",
    json: bool = False,
) -> None:
    """List webhook deliveries and the queue of each endpoint. Needs an operator's token."""
    require_at_least(1, "limit", limit)
    chosen: dict[str, str | int] = {"limit": limit}
    chosen |= {"state": "failed"} if failed else {}
    chosen |= {"endpoint": endpoint} if endpoint else {}
    with connect(url, token, inventory, host) as api:
        endpoints = api.get(f"{PATH}/endpoints")["endpoints"]
        found = api.get(f"{PATH}/deliveries", **chosen)
    answer(
        {"endpoints": endpoints, **found},
        as_json=json,
        text=f"{_endpoints(endpoints)}\n\n{_deliveries(found, limit)}",
    )


def _endpoints(endpoints: list[dict[str, Any]]) -> str:
    if not endpoints:
        return "no endpoints are configured; docs/webhooks.md describes how"
    columns = ("endpoint", "URL", "waiting", "failing since", "failed within a day", "")
    rows = [
        [
            *(each["name"], each["url"], each["waiting"], minute(each["failingSince"])),
            *(each["failedLately"], "" if each["wantsMore"] else "answered 410: wants no more"),
        ]
        for each in endpoints
    ]
    return table_text(columns, rows)


def _deliveries(found: dict[str, Any], limit: int) -> str:
    if not found["deliveries"]:
        return "no deliveries"
    columns = ("id", "endpoint", "event", "at", "state", "attempts", "next", "problem")
    rows = [
        [
            *(each["id"], each["endpoint"], each["type"], minute(each["timestamp"])),
            *(each["state"], each["attempts"], minute(each["dueAt"]), each["problem"]),
        ]
        for each in found["deliveries"]
    ]
    return table_text(columns, rows) + more_text(found["next"] is not None, limit, all_of_them=True)


@task(
    positional=["delivery"],
    help={"delivery": "a delivery's number, as ./inv webhooks has it", **API_HELP},
)
@edge
def resend(
    context: Context,
    delivery: str,
    url: str = "",
    token: str = "",
    inventory: str = "",
    host: str = "",
    json: bool = False,
) -> None:
    """Send a webhook delivery again. Needs an operator's token."""
    if not delivery.isdecimal():
        raise ConfigError(
            f"{delivery} is not the number of a delivery", "./inv webhooks lists them"
        )
    with connect(url, token, inventory, host) as api:
        found = api.post(f"{PATH}/deliveries/{delivery}/resend")
    text = f"{found['type']} goes to {found['endpoint']} again; ./inv webhooks shows the result"
    answer(found, as_json=json, text=text)


@task(
    name="try",
    help={
        "endpoint": "the name or URL of a configured endpoint (default: each of them); "
        "--endpoint may be left out",
        **API_HELP,
    },
)
@edge
def try_endpoints(
    context: Context,
    endpoint: str = "",
    url: str = "",
    token: str = "",
    inventory: str = "",
    host: str = "",
    json: bool = False,
) -> None:
    """Send a signed test webhook and show the answer: exit status 1 if one is not accepted."""
    with connect(url, token, inventory, host) as api:
        endpoints = api.get(f"{PATH}/endpoints")["endpoints"]
        names = [each["name"] for each in endpoints if _is_meant(each, endpoint)]
        if not names:
            known = ", ".join(each["name"] for each in endpoints)
            raise ConfigError(
                f"there is no webhook endpoint {endpoint}"
                if endpoint
                else "no endpoint is configured",
                f"the host has {known}"
                if known
                else "docs/webhooks.md describes how to configure one",
            )
        found = [api.post(f"{PATH}/endpoints/{name}/try") for name in names]
    rows = [
        [
            *(each["endpoint"], "taken" if each["taken"] else "NOT TAKEN", each["status"]),
            *(each["said"], f"{each['seconds']:.2f}"),
        ]
        for each in found
    ]
    columns = ("endpoint", "", "status", "answer", "s")
    answer(found, as_json=json, text=table_text(columns, rows))
    raise SystemExit(0 if all(each["taken"] for each in found) else 1)


def _is_meant(endpoint: dict[str, Any], named: str) -> bool:
    without_query, _, _ = named.partition("?")
    return not named or named == endpoint["name"] or without_query == endpoint["url"]

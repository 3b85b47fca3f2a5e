"""credentials.*: keys that a host seals users' credentials with, and the log of their use."""

from __future__ import annotations

from invoke.context import Context

from polydev.cli import answer, edge, require_at_least, task
from verbs.api_connection import API_HELP, connect
from verbs.deploy import described_host
from verbs.paths_and_help import JSON_HELP, LAB_INVENTORY
from verbs.sessions import session_user
from verbs.text_tables import minute, short, table_text
from verbs.users_and_tokens import ON_HOST_HELP, USER_HELP

MOST_LISTED = 200


@task(name="key", help={"json": JSON_HELP})
@edge
def make_key(context: Context, json: bool = False) -> None:
    """Print a new key for the secret credentials-key of the inventory."""
    from polydev.client.credentials_key import new_key

    key = new_key()
    answer({"key": key}, as_json=json, text=key)


@task(help=ON_HOST_HELP)
@edge
def rotate(
    context: Context, inventory: str = LAB_INVENTORY, host: str = "", json: bool = False
) -> None:
    """Encrypt a host's credentials with its first key, after a deployment of that key."""
    from polydev.client.credentials_key import rotate

    _, described = described_host(inventory, host)
    done = rotate(described.target)
    text = f"{done['sealed']} sealed anew, {done['current']} were sealed with the first key before"
    if done.get("recipients"):
        text += f", {done['recipients']} are sealed to their owners' own keys"
    if done["locked"]:
        text += f"; {done['locked']} cannot be opened by any key of the host"
    answer(done, as_json=json, text=text)


@task(
    name="log",
    help={
        "user": f"whose (default: those of the token's user): {USER_HELP}",
        "limit": f"how many, newest first, {MOST_LISTED} at most (default: 50)",
        **API_HELP,
    },
)
@edge
def show_log(
    context: Context,
    user: str = "",
    limit: int = 50,
    url: str = "",
    token: str = "",
    inventory: str = "",
    host: str = "",
    json: bool = False,
) -> None:
    """Show what was done with a user's credentials, by whom and when."""
    require_at_least(1, "limit", limit)
    with connect(url, token, inventory, host) as api:
        of_one = {"userId": session_user(user, url, inventory, host)} if user else {}
        most = min(limit, MOST_LISTED)
        events = list(api.get("/api/auth/credentials/log", limit=most, **of_one)["events"])
    columns = ("at", "provider", "what", "by", "actor", "session")
    rows = [
        [
            minute(each["at"]),
            each["provider"],
            each["kind"].replace("_", " "),
            each["by"],
            short(each["actorId"] or "-"),
            short(each["sessionId"] or "-"),
        ]
        for each in events
    ]
    text = table_text(columns, rows) if rows else "the log has no entries"
    answer(events, as_json=json, text=text)

"""user.*, token.*: the users of a host and their tokens, over SSH.

Users are named by id, the beginning of it, or name; the host finds the user.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from invoke.context import Context

from polydev.cli import answer, edge, task
from polydev.errors import ConfigError
from verbs.deploy import described_host
from verbs.paths_and_help import HOST_HELP, INVENTORY_HELP, JSON_HELP, LAB_INVENTORY
from verbs.text_tables import minute, table_text

if TYPE_CHECKING:
    from polydev.client.controller_cli import HostController

TOKEN_DAYS = 90.0
ON_HOST_HELP = {"inventory": INVENTORY_HELP, "host": HOST_HELP, "json": JSON_HELP}
USER_HELP = "a user's id, 4 or more characters of its beginning, or their name"
ROLE_HELP = "admin (all), operator (all sessions and VMs) or user (their own)"


def host_controller(inventory: str, host: str) -> HostController:
    from polydev.client.controller_cli import HostController

    _, described = described_host(inventory, host)
    return HostController(described.target)


@task(
    name="add",
    help={
        "role": ROLE_HELP,
        "name": "what people call them",
        "id": "their UUID elsewhere, such as a JWT's `sub` (default: a new one)",
        **ON_HOST_HELP,
    },
)
@edge
def add_user(
    context: Context,
    role: str = "user",
    name: str = "",
    id: str = "",
    inventory: str = LAB_INVENTORY,
    host: str = "",
    json: bool = False,
) -> None:
    """Add a user to a host."""
    options = [*(["--name", name] if name else []), *(["--id", id] if id else [])]
    made = host_controller(inventory, host).ask("user", "add", "--role", role, *options)
    answer(made, as_json=json, text=f"user {made['id']} has the role {made['role']}")


@task(name="list", help=ON_HOST_HELP)
@edge
def list_users(
    context: Context, inventory: str = LAB_INVENTORY, host: str = "", json: bool = False
) -> None:
    """List the users of a host."""
    found = host_controller(inventory, host).ask("user", "list")
    rows = [[each["id"], each["role"], each["name"], minute(each["createdAt"])] for each in found]
    text = table_text(("user", "role", "name", "since"), rows) if rows else "none: ./inv user.add"
    answer(found, as_json=json, text=text)


@task(
    name="role",
    positional=["user", "role"],
    help={"user": USER_HELP, "role": ROLE_HELP, **ON_HOST_HELP},
)
@edge
def change_role(
    context: Context,
    user: str,
    role: str,
    inventory: str = LAB_INVENTORY,
    host: str = "",
    json: bool = False,
) -> None:
    """Change the role of a user."""
    changed = host_controller(inventory, host).ask("user", "role", user, "--role", role)
    answer(changed, as_json=json, text=f"user {changed['id']} has the role {changed['role']}")


@task(
    name="rename",
    positional=["user", "name"],
    help={"user": USER_HELP, "name": "what people call them from now", **ON_HOST_HELP},
)
@edge
def rename_user(
    context: Context,
    user: str,
    name: str,
    inventory: str = LAB_INVENTORY,
    host: str = "",
    json: bool = False,
) -> None:
    """Rename a user."""
    changed = host_controller(inventory, host).ask("user", "rename", user, name)
    answer(changed, as_json=json, text=f"user {changed['id']} is called {changed['name']}")


@task(name="remove", positional=["user"], help={"user": USER_HELP, **ON_HOST_HELP})
@edge
def remove_user(
    context: Context,
    user: str,
    inventory: str = LAB_INVENTORY,
    host: str = "",
    json: bool = False,
) -> None:
    """Remove a user with their sessions, tokens and credentials, and end their VMs."""
    removed = host_controller(inventory, host).ask("user", "remove", user)
    counts = ", ".join(f"{removed[what]} {what}" for what in ("sessions", "tokens", "credentials"))
    name = removed["name"] or "no name"
    answer(removed, as_json=json, text=f"user {removed['id']} ({name}) is removed, with {counts}")


@task(
    name="create",
    help={
        "user": f"whom it stands for: {USER_HELP}",
        "name": "what it is for",
        "days": f"days until it expires (default: {TOKEN_DAYS:g})",
        "never": "it does not expire",
        **ON_HOST_HELP,
    },
)
@edge
def create_token(
    context: Context,
    user: str,
    name: str,
    days: float = TOKEN_DAYS,
    never: bool = False,
    inventory: str = LAB_INVENTORY,
    host: str = "",
    json: bool = False,
) -> None:
    """Create a token for a user. It is shown once; the host stores its hash only."""
    if never and days != TOKEN_DAYS:
        raise ConfigError("--days and --never exclude each other", "remove one of them")
    limit = ["--never"] if never else ["--days", f"{days:g}"]
    words = ("token", "create", "--user", user, "--name", name, *limit)
    made = host_controller(inventory, host).ask(*words)
    until = f"until {minute(made['expiresAt'])} UTC" if made["expiresAt"] else "for ever"
    text = f"token {made['id']}, good {until}, shown this once:\n{made['token']}"
    answer(made, as_json=json, text=text)


@task(name="list", help={"user": f"only those of one: {USER_HELP}", **ON_HOST_HELP})
@edge
def list_tokens(
    context: Context,
    user: str = "",
    inventory: str = LAB_INVENTORY,
    host: str = "",
    json: bool = False,
) -> None:
    """List the tokens of a host, without their secrets."""
    of_user = ["--user", user] if user else []
    found = host_controller(inventory, host).ask("token", "list", *of_user)
    columns = ("token", "user", "name", "made", "expires", "revoked", "last used")
    text = table_text(columns, map(_token_row, found)) if found else "none: ./inv token.create"
    answer(found, as_json=json, text=text)


def _token_row(token: dict[str, Any]) -> list[object]:
    times = [minute(token[f"{what}At"]) for what in ("created", "expires", "revoked", "used")]
    return [token["id"], token["userId"], token["name"], *times]


@task(name="revoke", positional=["token"], help={"token": "id of the token", **ON_HOST_HELP})
@edge
def revoke_token(
    context: Context,
    token: str,
    inventory: str = LAB_INVENTORY,
    host: str = "",
    json: bool = False,
) -> None:
    """Revoke a token."""
    revoked = host_controller(inventory, host).ask("token", "revoke", token)
    answer(revoked, as_json=json, text=f"token {revoked['id']} ({revoked['name']}) is revoked")

"""user.*, token.*: who may ask a host's controller for what. They run on the host, over SSH."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from invoke.context import Context
from invoke.tasks import task

from polydev.cli import answer, edge
from verbs.hosts import described_host
from verbs.places import HOST_HELP, INVENTORY_HELP, JSON_HELP, LAB_INVENTORY
from verbs.tables import minute, table_text

if TYPE_CHECKING:
    from polydev.client.on_host import HostController

ON_HOST_HELP = {"inventory": INVENTORY_HELP, "host": HOST_HELP, "json": JSON_HELP}
ROLE_HELP = "admin (all), operator (all sessions and VMs) or user (their own)"


def host_controller(inventory: str, host: str) -> HostController:
    from polydev.client.on_host import HostController

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
    """The users of a host."""
    found = host_controller(inventory, host).ask("user", "list")
    rows = [[each["id"], each["role"], each["name"], minute(each["createdAt"])] for each in found]
    text = table_text(("user", "role", "name", "since"), rows) if rows else "none: ./inv user.add"
    answer(found, as_json=json, text=text)


@task(
    name="role",
    positional=["user", "role"],
    help={"user": "id of a user", "role": ROLE_HELP, **ON_HOST_HELP},
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
    """Give a user another role."""
    changed = host_controller(inventory, host).ask("user", "role", user, "--role", role)
    answer(changed, as_json=json, text=f"user {changed['id']} has the role {changed['role']}")


@task(
    name="create",
    help={
        "user": "id of the user that it stands for",
        "name": "what it is for",
        "days": "days until it expires (default: it does not)",
        **ON_HOST_HELP,
    },
)
@edge
def create_token(
    context: Context,
    user: str,
    name: str,
    days: float = 0.0,
    inventory: str = LAB_INVENTORY,
    host: str = "",
    json: bool = False,
) -> None:
    """Make a token for a user. It is shown this once; the host stores its hash only."""
    limit = ["--days", f"{days:g}"] if days else []
    words = ("token", "create", "--user", user, "--name", name, *limit)
    made = host_controller(inventory, host).ask(*words)
    answer(made, as_json=json, text=f"token {made['id']}, shown this once:\n{made['token']}")


@task(name="list", help={"user": "only this user's", **ON_HOST_HELP})
@edge
def list_tokens(
    context: Context,
    user: str = "",
    inventory: str = LAB_INVENTORY,
    host: str = "",
    json: bool = False,
) -> None:
    """The tokens of a host, without the tokens themselves."""
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
    """End a token."""
    revoked = host_controller(inventory, host).ask("token", "revoke", token)
    answer(revoked, as_json=json, text=f"token {revoked['id']} ({revoked['name']}) is revoked")

"""The demo user and the operator of a lab, each with a token, created once per lab.

`access.json` in the lab's folder has them; only its owner can read it. The controller is asked each
time whether the tokens are valid, since a rollback may have removed them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

FILE = "access.json"
DEMO_NAME, OPERATOR_NAME = "demo", "./inv"
PURPOSE = "./inv up"

Ask = Callable[..., Any]
"""One verb of the host's `master-controller`, as `HostController.ask`."""
IsValid = Callable[[str], bool]
"""Whether the controller accepts a token."""


class LabUser(BaseModel):
    """A user of the lab, with a token."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)

    user_id: str
    token: str


class LabAccess(BaseModel):
    """The demo user has the role user, the operator is an admin."""

    model_config = ConfigDict(frozen=True)

    demo: LabUser
    operator: LabUser


def stored_access(folder: Path) -> LabAccess | None:
    """Return the users stored in a lab's folder; None before the first `./inv up`."""
    try:
        return LabAccess.model_validate_json((folder / FILE).read_text())
    except (OSError, ValidationError):
        return None


def store_access(folder: Path, access: LabAccess) -> None:
    unfinished = folder / f"{FILE}.new"
    unfinished.unlink(missing_ok=True)
    number = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(number, "w") as file:
        file.write(access.model_dump_json(by_alias=True, indent=1) + "\n")
    unfinished.replace(folder / FILE)


def ensure_access(folder: Path, ask: Ask, is_valid: IsValid) -> LabAccess:
    """Return the lab's users with valid tokens; create what is missing, on the host."""
    had = stored_access(folder)
    if had and is_valid(had.demo.token) and is_valid(had.operator.token):
        return had
    known = {str(user["id"]): user for user in ask("user", "list")}
    access = LabAccess(
        demo=_account(had.demo if had else None, "user", DEMO_NAME, known, ask, is_valid),
        operator=_account(
            had.operator if had else None, "admin", OPERATOR_NAME, known, ask, is_valid
        ),
    )
    store_access(folder, access)
    return access


def _account(
    had: LabUser | None,
    role: str,
    name: str,
    known: dict[str, Any],
    ask: Ask,
    is_valid: IsValid,
) -> LabUser:
    if had and had.user_id in known and is_valid(had.token):
        return had
    user_id = had.user_id if had else None
    if user_id not in known:
        same = ["--id", user_id] if user_id else []
        user_id = str(ask("user", "add", "--role", role, "--name", name, *same)["id"])
    made = ask("token", "create", "--user", user_id, "--name", PURPOSE)
    return LabUser(user_id=user_id, token=str(made["token"]))

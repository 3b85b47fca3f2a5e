"""database.*: copies of a host's database here, and back from one. Over SSH."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from invoke.context import Context

from polydev.cli import answer, edge, task
from verbs.access import ON_HOST_HELP, host_controller
from verbs.places import LAB_INVENTORY


@task(positional=["file"], help={"file": "where to, on this machine", **ON_HOST_HELP})
@edge
def backup(
    context: Context,
    file: str,
    inventory: str = LAB_INVENTORY,
    host: str = "",
    json: bool = False,
) -> None:
    """Copy a host's database to a file here, while it is in use."""
    target = Path(file).resolve()
    made = host_controller(inventory, host).back_up(target)
    answer(
        {**made, "file": str(target)},
        as_json=json,
        text=f"{target}, {made['bytes']:,} bytes: back with ./inv database.restore {quote(file)}",
    )


@task(
    positional=["file"],
    help={
        "file": "what database.backup wrote, on this machine",
        "stop": "stop the controller for it, and start it again",
        **ON_HOST_HELP,
    },
)
@edge
def restore(
    context: Context,
    file: str,
    stop: bool = False,
    inventory: str = LAB_INVENTORY,
    host: str = "",
    json: bool = False,
) -> None:
    """Replace a host's database by a copy: what was written since is lost."""
    source = Path(file).resolve()
    done = host_controller(inventory, host).restore(source, stop=stop)
    rows = done["rows"]
    answer(
        {**done, "file": str(source)},
        as_json=json,
        text=f"the database is what {source} holds: {rows['users']} users, "
        f"{rows['sessions']} sessions",
    )

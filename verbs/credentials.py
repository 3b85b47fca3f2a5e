"""credentials.*: the keys that a host seals its users' credentials with."""

from __future__ import annotations

from invoke.context import Context

from polydev.cli import answer, edge, task
from verbs.access import ON_HOST_HELP
from verbs.hosts import described_host
from verbs.places import JSON_HELP, LAB_INVENTORY


@task(name="key", help={"json": JSON_HELP})
@edge
def make_key(context: Context, json: bool = False) -> None:
    """Print a new key, for a file that the inventory's secrets name as credentials-key."""
    from polydev.client.credentials import new_key

    key = new_key()
    answer({"key": key}, as_json=json, text=key)


@task(help=ON_HOST_HELP)
@edge
def rotate(
    context: Context, inventory: str = LAB_INVENTORY, host: str = "", json: bool = False
) -> None:
    """Seal a host's credentials with its first key, after a deployment that put it there."""
    from polydev.client.credentials import rotate

    _, described = described_host(inventory, host)
    done = rotate(described.target)
    text = f"{done['sealed']} sealed anew, {done['current']} were sealed with the first key before"
    if done["locked"]:
        text += f"; {done['locked']} cannot be opened by any key of the host"
    answer(done, as_json=json, text=text)

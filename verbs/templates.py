"""templates, template.*: the templates that a host's VMs are resumed from."""

from __future__ import annotations

from typing import Any

from invoke.context import Context

from polydev.cli import answer, edge, task
from polydev.errors import ConfigError
from verbs.api_connection import API_HELP, connect
from verbs.deploy import described_host
from verbs.paths_and_help import HOST_HELP, INVENTORY_HELP, JSON_HELP, LAB_INVENTORY
from verbs.text_tables import minute, table_text

PATH = "/api/admin/templates"
MIB = 1024**2


@task(help=API_HELP)
@edge
def templates(
    context: Context,
    url: str = "",
    token: str = "",
    inventory: str = "",
    host: str = "",
    json: bool = False,
) -> None:
    """List a host's templates, oldest first, and one in progress. Needs an operator's token."""
    with connect(url, token, inventory, host) as api:
        found = api.get(PATH)
    columns = ("template", "image", "made", "took", "disk", "for VMs of", "")
    rows = [_row(each) for each in found["templates"]]
    lines = [table_text(columns, rows)] if rows else ["no templates"]
    answer(found, as_json=json, text="\n".join([*lines, *_notes(found)]))


def _row(template: dict[str, Any]) -> list[object]:
    return [
        template["key"][:12],
        template["imageDigest"][:12],
        minute(template["madeAt"]),
        f"{template['seconds']:.0f} s",
        _mebibytes(template["diskBytes"]),
        f"{template['cpus']} CPUs, {template['memoryMib']} MiB",
        "serves" if template["serves"] else None,
    ]


def _mebibytes(size: int) -> str:
    return f"{size / MIB:.0f} MiB"


def _notes(found: dict[str, Any]) -> list[str]:
    build, golden = found["build"], str(found["goldenImage"])[:12]
    notes = [f"VMs boot: {found['bootsBecause']}"] if found["bootsBecause"] else []
    if build["state"] == "running":
        notes.append(f"the template of golden image {golden} is being made: {build['detail']}")
    elif build["state"] == "failed":
        notes.append(f"making the template of golden image {golden} failed: {build['detail']}")
    return notes


@task(help=API_HELP)
@edge
def pool(
    context: Context,
    url: str = "",
    token: str = "",
    inventory: str = "",
    host: str = "",
    json: bool = False,
) -> None:
    """Show how many VMs wait for sessions, and why not more. Needs an operator's token."""
    with connect(url, token, inventory, host) as api:
        found = api.get("/api/admin/pool")
    of = f" of image {found['imageDigest'][:12]}" if found["imageDigest"] else ""
    waiting = f"{found['primed']} of {found['size']} VMs{of} wait for sessions"
    making = f", {found['priming']} being made" if found["priming"] else ""
    answer(found, as_json=json, text=f"{waiting}{making}: {found['detail']}")


@task(
    name="build",
    help={
        "again": "make it again if it exists; the old one serves until the new one is verified",
        "inventory": INVENTORY_HELP,
        "host": HOST_HELP,
        "json": JSON_HELP,
    },
)
@edge
def build_template(
    context: Context,
    again: bool = False,
    inventory: str = LAB_INVENTORY,
    host: str = "",
    json: bool = False,
) -> None:
    """Make the template of a host's golden image, unless it exists, and wait for it."""
    from polydev.client.template_build import build_template as build
    from polydev.progress import Steps

    _, described = described_host(inventory, host)
    with Steps().step(f"{described.name}: template") as step:
        made = build(described.target, step.say, again=again)
    what = "is made" if made["made"] else "exists already; --again makes it again"
    text = f"template {made['key'][:12]} of image {made['imageDigest'][:12]} {what}"
    answer(made, as_json=json, text=text)


@task(
    name="show",
    help={
        "key": "a template's key or the start of it (default: the one that serves); "
        "--key may be left out",
        **API_HELP,
    },
)
@edge
def show_template(
    context: Context,
    key: str = "",
    url: str = "",
    token: str = "",
    inventory: str = "",
    host: str = "",
    json: bool = False,
) -> None:
    """Show one template in detail. Needs an operator's token."""
    from polydev.client.controller_api import one_with_prefix

    with connect(url, token, inventory, host) as api:
        found = api.get(PATH)
    wanted = key or found["serving"]
    if wanted is None:
        raise ConfigError(f"no template serves: {found['bootsBecause']}", "./inv templates")
    keys = [each["key"] for each in found["templates"]]
    wanted = one_with_prefix(keys, wanted, "template", "./inv templates has them")
    (record,) = (each for each in found["templates"] if each["key"] == wanted)
    answer(record, as_json=json, text=_details(record))


def _details(record: dict[str, Any]) -> str:
    lines = {
        "template": record["key"],
        "image": record["imageDigest"],
        "serves": "yes" if record["serves"] else "no",
        "made": minute(record["madeAt"]),
        "took": f"{record['seconds']:.1f} s, of it {record['bootSeconds']:.1f} s to boot",
        "disk": _mebibytes(record["diskBytes"]),
        "for VMs of": f"{record['cpus']} CPUs, {record['memoryMib']} MiB",
        "hypervisor": f"{record['hypervisor']}, {record['accelerator']}",
        **{f"sha256 of {name}": digest for name, digest in record["files"].items()},
    }
    return "\n".join(f"{name:<22}{value}" for name, value in lines.items())

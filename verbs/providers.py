"""providers, providers.check: the tools in an image, and whether they are current."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from invoke.context import Context

from polydev.cli import answer, edge, task
from verbs.paths_and_help import JSON_HELP, RECIPE, RECIPE_HELP
from verbs.text_tables import table_text

if TYPE_CHECKING:
    from polydev.image.provider_tools import Tool

HELP = {"recipe": RECIPE_HELP, "json": JSON_HELP}


def _fields(tool: Tool) -> dict[str, Any]:
    return {
        "name": tool.provider.name,
        "label": tool.provider.label,
        "olderNames": tool.provider.older_names,
        "package": tool.provider.package,
        "version": tool.version,
    }


@task(name="list", help=HELP)
@edge
def list_providers(context: Context, recipe: str = str(RECIPE), json: bool = False) -> None:
    """List the providers of a recipe and the versions of their tools."""
    from polydev.image.provider_tools import tools_of
    from polydev.image.recipe import load_recipe

    found = tools_of(load_recipe(Path(recipe)))
    columns = ("provider", "tool", "npm package", "version")
    rows = [(each.provider.name, each.provider.label, *_brought(each)) for each in found]
    answer([_fields(each) for each in found], as_json=json, text=table_text(columns, rows))


@task(help=HELP)
@edge
def check(context: Context, recipe: str = str(RECIPE), json: bool = False) -> None:
    """Show which providers' tools are older than npm's: exit status 2 if any is, else 0."""
    from polydev.image.provider_tools import checked, tools_of
    from polydev.image.recipe import load_recipe

    found = checked(tools_of(load_recipe(Path(recipe))))
    columns = ("provider", "npm package", "version", "newest", "")
    rows = [
        (each.tool.provider.name, *_brought(each.tool), each.newest, "behind" * each.is_behind)
        for each in found
    ]
    fields = [
        {**_fields(each.tool), "newest": each.newest, "behind": each.is_behind} for each in found
    ]
    answer(fields, as_json=json, text=table_text(columns, rows))
    raise SystemExit(2 if any(each.is_behind for each in found) else 0)


def _brought(tool: Tool) -> tuple[str | None, str | None]:
    return tool.provider.package, tool.version

"""The providers' tools that npm installs: their locked versions, and the newest ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from polydev.image.recipe import LOCK, Recipe
from polydev.npm import newest_version
from polydev.providers import Provider


@dataclass(frozen=True)
class Tool:
    """A provider's tool; `version` is the locked one, or None if npm does not install the tool."""

    provider: Provider
    version: str | None


@dataclass(frozen=True)
class CheckedTool:
    """A tool that npm installs, and the version that the registry calls the latest."""

    tool: Tool
    newest: str

    @property
    def is_behind(self) -> bool:
        return self.tool.version != self.newest


def tools_of(recipe: Recipe) -> list[Tool]:
    """Return the tools of a recipe's providers, by the providers' names."""
    versions = dict(_locked_versions(recipe))
    providers = (each for layer in recipe.layers for each in layer.load_providers().values())
    found = [Tool(each, versions.get(each.package)) for each in providers]
    return sorted(found, key=lambda tool: tool.provider.name)


def checked(tools: Sequence[Tool]) -> list[CheckedTool]:
    """Ask npm's registry for the newest version of each tool that npm installs.

    Raises ConfigError if the registry does not answer or has no such package.
    """
    return [
        CheckedTool(tool, newest_version(tool.provider.package))
        for tool in tools
        if tool.provider.package is not None
    ]


def _locked_versions(recipe: Recipe) -> Iterator[tuple[str | None, str]]:
    for layer in recipe.layers:
        if layer.npm:
            text = (layer.folder / layer.npm.folder / LOCK).read_text(encoding="utf-8")
            for place, entry in json.loads(text).get("packages", {}).items():
                if place.count("node_modules/") == 1 and "version" in entry:
                    yield place.removeprefix("node_modules/"), entry["version"]

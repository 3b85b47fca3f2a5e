"""The texts of the pages, from texts.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from polydev.yaml_files import load_yaml

FILE = Path(__file__).parent / "texts.yaml"


@cache
def texts() -> Mapping[str, str]:
    """Return all texts by their dotted names, such as `login.title`."""
    return dict(_flat(load_yaml(FILE), ""))


def _flat(found: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, str(value)


def text(name: str, **values: object) -> str:
    """Return a text with its {values} filled in. Raises KeyError for an unknown name."""
    return texts()[name].format(**values)


def texts_under(prefix: str) -> dict[str, str]:
    """Return a group of texts for a script, each by the rest of its name."""
    start = f"{prefix}."
    return {
        name.removeprefix(start): words for name, words in texts().items() if name.startswith(start)
    }

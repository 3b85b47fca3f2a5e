"""Read JSON whose objects have each key once: Python silently takes the last of two."""

from __future__ import annotations

import json
from typing import Any


class RepeatedKey(ValueError):
    """An object has a key twice."""


def load_json(text: str | bytes) -> Any:
    """Return the value. Raises RepeatedKey and what `json.loads` raises."""
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        # The key is not quoted: it may be a misplaced secret.
        raise RepeatedKey("an object has the same key twice")
    return made

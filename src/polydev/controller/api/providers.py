"""Names of providers as callers write them: the present ones, and those of older clients."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, WithJsonSchema

from polydev.controller.model import Provider

OLDER_NAMES: dict[str, Provider] = {
    "claude_code": "claude",
    "codex_cli": "codex",
    "gemini_cli": "gemini",
}


def present_name(given: Any) -> Any:
    """The present name of what an older client calls otherwise; anything else as it is."""
    return OLDER_NAMES.get(given, given) if isinstance(given, str) else given


NamedProvider = Annotated[
    Provider,
    BeforeValidator(present_name),
    WithJsonSchema({"type": "string", "enum": [*get_args(Provider), *OLDER_NAMES]}),
]

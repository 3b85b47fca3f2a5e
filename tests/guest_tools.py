"""Providers as a guest has them, for tests of what runs in there: files of the same shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from polydev.agent.providers import Provider

CREDENTIALS = {"token": {"access": "a1", "refresh": "r1"}, "expires": 12}
FILE = ".tool/credentials.json"


def provider_data(name: str = "claude", **changes: Any) -> dict[str, Any]:
    """A tool called `claude` that logs in by `claude login`; `changes` go into its login."""
    return {
        "name": name,
        "label": name.title(),
        "login": {
            "command": [name, "login"],
            "environment": {},
            "requests": [],
            "printed_url_mark": "client_id=",
            "device_code": None,
            "accepts_code": True,
            **changes,
        },
        "status": {"command": [name, "status"], "environment": {}},
        "credentials": {
            "file": FILE,
            "requires": ["token.access", "token.refresh"],
            "also": {".tool/more/settings.json": {"theme": "dark"}},
        },
    }


def provider(name: str = "claude", **changes: Any) -> Provider:
    return Provider(provider_data(name, **changes))


def write_provider(folder: Path, data: dict[str, Any]) -> None:
    """Lay it where the agent and the programs of logins look for it."""
    folder.mkdir(exist_ok=True)
    (folder / f"{data['name']}.json").write_text(json.dumps(data))

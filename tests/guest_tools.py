"""Provider files as in a guest, for tests of programs that run there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from polydev import providers
from polydev.agent.providers import CredentialsFile, GuestProvider
from tests.images import GOLDEN

CREDENTIALS: dict[str, Any] = {"token": {"access": "a1", "refresh": "r1"}, "expires": 12}
FILE = ".tool/credentials.json"


def provider_data(name: str = "claude", **changes: Any) -> dict[str, Any]:
    """Return a provider whose tool `claude` logs in by `claude login`; `changes` change that."""
    checked = providers.Provider.model_validate(
        {
            "name": name,
            "label": name.title(),
            "login": {"command": [name, "login"], "accepts_code": True, **changes},
            "status": {"command": [name, "status"]},
            "credentials": {
                "file": FILE,
                "requires": ["token.access", "token.refresh"],
                "rotates": False,
                "also": {".tool/more/settings.json": {"theme": "dark"}},
            },
        }
    )
    data: dict[str, Any] = json.loads(providers.guest_json(checked))
    return data


def provider(name: str = "claude", **changes: Any) -> GuestProvider:
    return GuestProvider(provider_data(name, **changes))


def kept_by(tool: GuestProvider) -> CredentialsFile:
    """Return the description of a provider's credentials."""
    assert tool.credentials is not None
    return tool.credentials


def golden_provider(name: str) -> GuestProvider:
    """Return a provider of the browser VM."""
    found = providers.load_providers(GOLDEN / "providers")[name]
    return GuestProvider(json.loads(providers.guest_json(found)))


def write_provider(folder: Path, data: dict[str, Any]) -> None:
    """Write a provider file where the agent and the login programs look for it."""
    folder.mkdir(exist_ok=True)
    (folder / f"{data['name']}.json").write_text(json.dumps(data))

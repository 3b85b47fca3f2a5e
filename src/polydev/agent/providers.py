"""The providers of this image: how their tools log in, and where they keep credentials.

The image's build has checked the files.
"""

from __future__ import annotations

import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

SUFFIX = ".json"


class CredentialsFile:
    """A JSON file below the user's home, its required keys, and files that belong to it."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.file: str = data["file"]
        self.requires: list[str] = data["requires"]
        self.also: dict[str, object] = data["also"]


class GuestProvider:
    """A tool that logs in and exits with status 0 on success.

    With `requests`, it is sent JSON-RPC requests on its standard input instead, one per line. The
    answer to the last one says how the login ended, and the end of input ends the tool.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        login, status, credentials = data["login"], data["status"], data["credentials"]
        self.name: str = data["name"]
        self.label: str = data["label"]
        self.command: list[str] = login["command"]
        self.environment: dict[str, str] = login["environment"]
        self.requests: list[dict[str, object]] = login["requests"]
        self.printed_url_mark: str = login["printed_url_mark"]
        self.device_code: str | None = login["device_code"]
        self.accepts_code: bool = login["accepts_code"]
        self.status_command: list[str] | None = status and status["command"]
        self.status_environment: dict[str, str] = status["environment"] if status else {}
        self.credentials = CredentialsFile(credentials) if credentials else None

    def input(self) -> bytes:
        """Return the requests to the tool as lines of JSON-RPC, with their index as id."""
        numbered = [{"jsonrpc": "2.0", "id": at, **ask} for at, ask in enumerate(self.requests)]
        return b"".join(json.dumps(request).encode() + b"\n" for request in numbered)


def known_providers(folder: str) -> list[str]:
    """Return the names of all providers, sorted."""
    try:
        files = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(file.removesuffix(SUFFIX) for file in files if file.endswith(SUFFIX))


def provider_of(folder: str, name: str) -> GuestProvider:
    """Return a known provider."""
    with open(f"{folder}/{name}{SUFFIX}", "rb") as file:
        return GuestProvider(json.load(file))

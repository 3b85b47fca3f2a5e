"""The providers of an image, from its record in the host's store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from polydev.controller.health import image_store_state
from polydev.controller.host.images import stored_image
from polydev.errors import ImageNotFound
from polydev.providers import Login, Provider


def _earlier(name: str, label: str, *command: str) -> Provider:
    login = Login(command=list(command))
    older = [f"{name}_code" if name == "claude" else f"{name}_cli"]
    return Provider(name=name, label=label, older_names=older, login=login, credentials=None)


# Providers of older images, whose records name none and whose agents hand over no credentials.
EARLIER: Mapping[str, Provider] = {
    each.name: each
    for each in (
        _earlier("claude", "Claude Code", "claude", "auth", "login"),
        _earlier("codex", "Codex", "codex", "login"),
        _earlier("gemini", "Gemini CLI", "gemini", "--acp"),
    )
}


def golden_providers(store: Path) -> Mapping[str, Provider]:
    """Return the providers of the golden image, by name."""
    golden = image_store_state(store).golden
    return EARLIER if golden is None else providers_of(store, golden)


def providers_of(store: Path, digest: str) -> Mapping[str, Provider]:
    """Return the providers of an image, by name."""
    try:
        record = stored_image(store, digest).record
    except ImageNotFound:
        return EARLIER
    return EARLIER if record is None or record.providers is None else record.providers


def rotates(store: Path, name: str) -> bool:
    """Return whether a provider's refresh tokens work once only."""
    found = golden_providers(store).get(name)
    return found is not None and found.rotates


def hands_over(store: Path, digest: str, name: str) -> bool:
    """Return whether VMs of an image hand over credentials of a provider."""
    found = providers_of(store, digest).get(name)
    return found is not None and found.credentials is not None

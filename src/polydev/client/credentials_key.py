"""The key that a host's controller encrypts credentials with: create and rotate it."""

from __future__ import annotations

import base64
import os
import secrets
from pathlib import Path
from typing import Any

from polydev.client.controller_cli import HostController
from polydev.errors import ConfigError
from polydev.ssh import SshTarget

KEY_BYTES = 32
FILE = "credentials-key"
ROTATION_SECONDS = 600.0


def new_key() -> str:
    """Return a new key as one line, the content of the secret."""
    return base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def ensure_key(folder: Path) -> Path:
    """Return the file of a lab's key, created once in the lab's folder, readable by its owner only.

    Raises ConfigError if it cannot be written.
    """
    file = folder / FILE
    if file.exists():
        return file
    unfinished = folder / f".{FILE}.{secrets.token_hex(4)}"
    try:
        number = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(number, "w") as opened:
                opened.write(f"{new_key()}\n")
            _link(unfinished, file)
        finally:
            unfinished.unlink()
    except OSError as error:
        raise ConfigError(
            f"cannot create {file}: {error.strerror}", "run it as root: labs belong to root"
        ) from error
    return file


def _link(unfinished: Path, file: Path) -> None:
    try:
        file.hardlink_to(unfinished)  # unlike a rename, a link replaces nothing
    except FileExistsError:
        return  # another process was first


def rotate(target: SshTarget) -> dict[str, Any]:
    """Encrypt a host's credentials with its first key; return how many could be and could not.

    Raises DeployError with the host's message.
    """
    asked = HostController(target).ask("credentials", "rotate", timeout_seconds=ROTATION_SECONDS)
    return dict(asked)

"""The keys that a host's controller seals credentials with: made here, and changed over SSH."""

from __future__ import annotations

import base64
import os
import secrets
from pathlib import Path
from typing import Any

from polydev.client.host_controller import HostController
from polydev.errors import ConfigError
from polydev.ssh import SshTarget

KEY_BYTES = 32
FILE = "credentials-key"
ROTATION_SECONDS = 600.0


def new_key() -> str:
    """A key as the secret holds it, one line."""
    return base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def ensure_key(folder: Path) -> Path:
    """The file of a lab's key, made once, in the lab's folder; its owner only can read it.

    Raises ConfigError where it cannot be written.
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
        raise ConfigError(f"{file} cannot be made: {error.strerror}", "labs are root's") from error
    return file


def _link(unfinished: Path, file: Path) -> None:
    try:
        file.hardlink_to(unfinished)  # unlike a rename this replaces nothing
    except FileExistsError:
        return  # of two that make one, the first has it


def rotate(target: SshTarget) -> dict[str, Any]:
    """Seal a host's credentials with its first key: how many were, and how many were not.

    Raises DeployError with what the host said.
    """
    asked = HostController(target).ask("credentials", "rotate", timeout_seconds=ROTATION_SECONDS)
    return dict(asked)

"""The keys that a host's controller seals credentials with: made here, and changed over SSH."""

from __future__ import annotations

import base64
import json
import os
import secrets
from pathlib import Path
from typing import Any

from polydev.client.on_host import AS_CONTROLLER, refusal
from polydev.errors import CommandTimeout, ConfigError, DeployError
from polydev.run import run
from polydev.ssh import SshTarget

KEY_BYTES = 32
FILE = "credentials-key"
ROTATION_SECONDS = 600.0
# Only root can read the secret, and only this verb gets it.
ROTATE = f"""{AS_CONTROLLER}
file=/etc/master-controller/secrets/{FILE}
if [ -r "$file" ]; then
    POLYDEV_CONTROLLER_CREDENTIALS_KEY=$(cat "$file")
    export POLYDEV_CONTROLLER_CREDENTIALS_KEY
fi
master_controller credentials rotate
"""


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
    argv = target.argv("sh", "-c", ROTATE, "sh")
    try:
        done = run(argv, check=False, timeout_seconds=ROTATION_SECONDS)
    except CommandTimeout as error:
        raise DeployError(f"{target.name} did not answer: {error.message}") from error
    if done.status != 0:
        raise refusal(target, done.status, done.stderr)
    return dict(json.loads(done.stdout))

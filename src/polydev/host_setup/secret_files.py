"""Secrets: files on the operator's machine, and their folder on a host."""

from __future__ import annotations

from pathlib import Path

from polydev.errors import ConfigError
from polydev.host_layout import CONTROLLER_CONFIG

SECRETS = str(CONTROLLER_CONFIG / "secrets")
# With this secret the controller itself serves HTTPS.
CERTIFICATE = "tls-certificate"
MAX_SECRET_BYTES = 64 * 1024


def secret_text(name: str, file: Path) -> str:
    """Return the text of an inventory's secret. Raises ConfigError, which does not quote it."""
    try:
        if file.exists() and not file.is_file():
            why = "is a directory or a device, not a file"
        elif file.stat().st_size > MAX_SECRET_BYTES:
            why = f"is larger than {MAX_SECRET_BYTES} bytes"
        else:
            return file.read_bytes().decode()
    except OSError as error:
        why = error.strerror or "cannot be read"
    except UnicodeDecodeError:
        why = "is not UTF-8 text"
    raise ConfigError(
        f"inventory: secrets.{name}: {file}: {why}", "correct the file, or name another one"
    )

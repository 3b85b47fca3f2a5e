"""Sources of settings besides the file: environment variables, and secrets of systemd.

A variable is POLYDEV_CONTROLLER_<KEY>, with two underscores between levels. A secret is a file in
$CREDENTIALS_DIRECTORY (systemd's LoadCredential=), named like its key with hyphens: `jwt_secret` is
`jwt-secret`.
"""

from __future__ import annotations

import os
from itertools import takewhile
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import EnvSettingsSource, PydanticBaseSettingsSource

from polydev.errors import ConfigError
from polydev.json_text import RepeatedKey, load_json
from polydev.validation import near

ENVIRONMENT_PREFIX = "POLYDEV_CONTROLLER_"
# Keys that are secrets.
SECRETS = (
    "alert_urls",
    "credentials_key",
    "database_url",
    "jwt_secret",
    "tls_certificate",
    "tls_key",
    "webhook_secrets",
)


class EnvironmentVariables(EnvSettingsSource):
    """Environment variables. Errors name the variable; an unknown one is an error too."""

    def __call__(self) -> dict[str, Any]:
        known = self.settings_cls.model_fields
        for variable in os.environ:
            if variable.upper().startswith(ENVIRONMENT_PREFIX):
                name, below, _ = variable[len(ENVIRONMENT_PREFIX) :].lower().partition("__")
                if name not in known:
                    words = f"there is no key {name}{near(name, list(known))}"
                elif below and not self.field_is_complex(known[name]):
                    words = f"{name} has no keys below it"
                else:
                    continue
                raise ConfigError(
                    f"the variable {variable}: {words}", "docs/controller.md has every key"
                )
        return super().__call__()

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        variable = ENVIRONMENT_PREFIX + field_name.upper()
        try:
            return load_json(value)
        except RepeatedKey as error:
            raise ConfigError(
                f"the variable {variable}: {error}", "remove one of the two"
            ) from None
        except (ValueError, RecursionError):
            raise ConfigError(
                f"the variable {variable} is not JSON, as lists and groups of keys must be",
                'write [2, 3] or {"per_user": 4}, for example; docs/controller.md has every key',
            ) from None


class CredentialsDirectory(PydanticBaseSettingsSource):
    """Secrets from the folder that systemd makes for the service."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        file = Path(folder or ".", secret_name(field_name))
        try:
            value = file.read_bytes().decode().strip() if folder and file.is_file() else None
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError(f"cannot be read: {why}", file=file) from None
        return value, field_name, False

    def __call__(self) -> dict[str, Any]:
        found = {
            name: self.get_field_value(self.settings_cls.model_fields[name], name)[0]
            for name in SECRETS
        }
        return {name: value for name, value in found.items() if value is not None}


def secret_name(field: str) -> str:
    """Return the name of a secret's file."""
    return field.replace("_", "-")


def variable_of(key: str) -> str:
    """Return the variable that overrides a key; of an item of a list, that of the list."""
    names = takewhile(lambda part: not part.isdecimal(), key.split("."))
    return ENVIRONMENT_PREFIX + "__".join(names).upper()

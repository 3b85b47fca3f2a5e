"""The controller's settings: a YAML file, overridden by the environment, secrets by systemd.

Environment variables are POLYDEV_CONTROLLER_<KEY>, levels parted by two underscores. A secret is
a file in $CREDENTIALS_DIRECTORY (systemd's LoadCredential=) named like its key with hyphens:
`jwt_secret` is `jwt-secret`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from polydev.errors import ConfigError

ENVIRONMENT_PREFIX = "POLYDEV_CONTROLLER_"


class Credentials(PydanticBaseSettingsSource):
    """Secrets from the folder that systemd makes for the service."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        file = Path(folder or ".", field_name.replace("_", "-"))
        value = file.read_text().strip() if folder and file.is_file() else None
        return value, field_name, False

    def __call__(self) -> dict[str, Any]:
        found = {
            name: self.get_field_value(field, name)[0]
            for name, field in self.settings_cls.model_fields.items()
        }
        return {name: value for name, value in found.items() if value is not None}


class Settings(BaseSettings):
    """One frozen value. What is passed in stands for the file, so the environment overrides it."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True
    )

    host: str = "127.0.0.1"
    """Where to listen if systemd hands over no socket; so is `port`."""
    port: int = Field(default=4000, ge=0, le=65535)
    database_url: str = Field(
        default="sqlite+aiosqlite:////var/lib/master-controller/controller.sqlite3",
        pattern=r"^(sqlite\+aiosqlite|postgresql\+\w+)://",
        repr=False,  # may hold a password
    )
    image_store: Path = Path("/var/lib/firecracker/snapshots/base")
    release_file: Path | None = None
    """None: release.json in the folder that holds the venv."""
    drain_seconds: int = Field(default=30, ge=1)
    """How long requests under way may take once the service is told to end."""
    keep_alive_seconds: int = Field(default=5, ge=1)
    """How long a connection may wait for its next request."""
    drain_keep_alive_seconds: float = Field(default=2, ge=0.1)
    """The same, once the service is told to end."""
    max_body_bytes: int = Field(default=1024 * 1024, ge=1)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    jwt_secret: SecretStr | None = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, Credentials(settings_cls), init_settings


def load_settings(file: Path) -> Settings:
    """Read `file` and everything that overrides it. Raises ConfigError naming file and key."""
    try:
        values = yaml.safe_load(file.read_text())
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=file) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"is not YAML: {error}", file=file) from error
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise ConfigError("must hold keys and values", file=file)
    try:
        return Settings(**values)
    except ValidationError as error:
        raise _config_error(file, error) from None  # pydantic's own text quotes the values


def _config_error(file: Path, error: ValidationError) -> ConfigError:
    first, *others = [
        (".".join(str(part) for part in each["loc"]), each["msg"])
        for each in error.errors(include_input=False, include_url=False)
    ]
    rest = "".join(f"; {key}: {message}" for key, message in others)
    return ConfigError(
        f"{first[1]}{rest}",
        f"correct the file or the variable {ENVIRONMENT_PREFIX}{first[0].upper()}",
        file=file,
        key=first[0],
    )

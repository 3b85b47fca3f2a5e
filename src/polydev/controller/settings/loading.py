"""Load the settings: read the file, and what overrides it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from polydev.controller.settings.controller_settings import ControllerSettings, wrong_case
from polydev.controller.settings.sources import SECRETS, secret_name, variable_of
from polydev.errors import ConfigError
from polydev.validation import dotted, problems_of
from polydev.yaml_files import load_yaml


def load_settings(file: Path) -> ControllerSettings:
    """Read `file` and all that overrides it. Raises ConfigError, which names file and key."""
    values = load_yaml(file)
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise ConfigError("must hold keys and values", file=file)
    for key in values:
        if meant := wrong_case(key):
            raise ConfigError(
                f"there is no such key; did you mean {meant}?", file=file, key=str(key)
            )
    try:
        return ControllerSettings(**values)
    except ValidationError as error:
        raise _config_error(file, error) from None  # pydantic's own text quotes the values


def _config_error(file: Path, error: ValidationError) -> ConfigError:
    found = [(dotted(path), words) for path, words in problems_of(error, ControllerSettings)]
    (key, message), *others = found
    rest = "".join(f"; {key}: {message}" for key, message in others)
    places = [f"the secret {secret_name(key)}"] if key in SECRETS else []
    places += ["the file", f"the variable {variable_of(key)}"]
    return ConfigError(f"{message}{rest}", f"correct {' or '.join(places)}", file=file, key=key)

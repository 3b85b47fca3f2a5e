"""Where each of the controller's settings comes from, and what a wrong one is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polydev.controller.release import release_id
from polydev.controller.settings import Settings, load_settings
from polydev.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "config.yaml"
    made.write_text("port: 4100\nlog_level: warning\n")
    return made


def test_environment_overrides_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYDEV_CONTROLLER_PORT", "4200")
    settings = load_settings(file)
    assert settings.port == 4200
    assert settings.log_level == "warning"
    assert settings.drain_seconds == 30


def test_an_empty_file_is_all_defaults(file: Path) -> None:
    file.write_text("# nothing set\n")
    assert load_settings(file) == Settings()


def test_secret_comes_from_systemds_credentials(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jwt-secret").write_text("of-the-host\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    settings = load_settings(file)
    assert settings.jwt_secret is not None
    assert settings.jwt_secret.get_secret_value() == "of-the-host"
    assert "of-the-host" not in repr(settings)


def test_database_password_is_not_shown() -> None:
    settings = Settings(database_url="postgresql+psycopg://me:hidden@db/controller")
    assert "hidden" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("port: many\n", "port: "),
        ("prot: 4000\n", "prot: "),
        ("database_url: mysql://secret@db\n", "database_url: "),
        ("- port\n", "must hold keys and values"),
        ("port: [\n", "is not YAML"),
    ],
)
def test_error_names_file_and_key_but_no_value(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(file)
    assert caught.value.message.startswith(f"{file}: {said}")
    assert "secret@db" not in caught.value.message


def test_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml: cannot be read: No such file"):
        load_settings(tmp_path / "config.yaml")


def test_release_is_what_the_deployment_wrote(tmp_path: Path) -> None:
    file = tmp_path / "release.json"
    assert release_id(file) is None
    file.write_text(json.dumps({"id": "20261121_101500-07af4b7"}))
    assert release_id(file) == "20261121_101500-07af4b7"
    file.write_text("[]")
    assert release_id(file) is None

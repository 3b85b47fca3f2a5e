"""The operator's side of credentials: a lab's key, made once, and a rotation over SSH."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import SecretStr

from polydev.client import controller_cli
from polydev.client.credentials_key import ensure_key, new_key, rotate
from polydev.controller.credential_encryption import keyring_of
from polydev.errors import CommandTimeout, ConfigError, DeployError
from polydev.processes import Completed
from polydev.ssh import SshTarget

TARGET = SshTarget("lab-dev", "192.0.2.1", user="deploy")


def test_new_keys_are_unique_and_valid() -> None:
    made = [new_key() for _ in range(10)]
    assert len(set(made)) == 10
    assert all(keyring_of(SecretStr(key)) for key in made)


def test_ensure_key_makes_one_private_key_file(tmp_path: Path) -> None:
    file = ensure_key(tmp_path)
    first = file.read_text()
    assert keyring_of(SecretStr(first))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert ensure_key(tmp_path).read_text() == first
    assert list(tmp_path.iterdir()) == [file]


def test_ensure_key_makes_one_key_in_concurrent_calls(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: ensure_key(tmp_path).read_text(), range(64)))
    assert len(set(found)) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_ensure_key_in_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot create .*nowhere/credentials-key"):
        ensure_key(tmp_path / "nowhere")


def answering(monkeypatch: pytest.MonkeyPatch, status: int, out: str, err: str = "") -> list[str]:
    """Replace `run` by this answer; return the command lines."""
    asked: list[str] = []

    def run(argv: list[str], **_options: object) -> Completed:
        asked.append(" ".join(argv))
        return Completed(tuple(argv), status, out, err, 0.1)

    monkeypatch.setattr(controller_cli, "run", run)
    return asked


def test_rotate_returns_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"sealed": 3, "current": 2, "locked": 1}
    asked = answering(monkeypatch, 0, '{"sealed": 3, "current": 2, "locked": 1}\n')
    assert rotate(TARGET) == counts
    assert "credentials rotate" in asked[0]


def test_refused_rotation_keeps_message_and_hint_of_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answering(monkeypatch, 1, "", "error: this host keeps no credentials\nnext:  make a key\n")
    with pytest.raises(DeployError) as caught:
        rotate(TARGET)
    assert (caught.value.message, caught.value.hint) == (
        "lab-dev: this host keeps no credentials",
        "make a key",
    )


def test_rotation_timeout_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[str], **_options: object) -> Completed:
        raise CommandTimeout(["ssh"], 600, "")

    monkeypatch.setattr(controller_cli, "run", run)
    with pytest.raises(DeployError, match="lab-dev did not answer"):
        rotate(TARGET)

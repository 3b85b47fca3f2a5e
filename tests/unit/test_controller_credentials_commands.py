"""`master-controller credentials rotate`, and a start with a key that is none."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from polydev.client.credentials import new_key
from polydev.controller.__main__ import main
from polydev.controller.command import opened
from polydev.controller.migrate import migrate
from polydev.controller.sealing import keyring_of
from polydev.controller.store.credentials import Credentials
from polydev.controller.store.users import Users

VARIABLE = "POLYDEV_CONTROLLER_CREDENTIALS_KEY"


class CommandLine:
    """One database and its configuration; a call is one process's worth of `main`."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.url = f"sqlite+aiosqlite:///{folder / 'controller.sqlite3'}"
        self.config = folder / "config.yaml"
        self.config.write_text(f"database_url: {self.url}\n")
        self._capsys = capsys

    def __call__(self, *words: str, status: int = 0) -> tuple[str, str]:
        assert main([*words, "--config", str(self.config)]) == status
        said = self._capsys.readouterr()
        return said.out, said.err

    def rotate(self) -> Any:
        return json.loads(self("credentials", "rotate")[0])

    def store(self, key: str, count: int) -> list[str]:
        """Users who each have credentials, sealed with that key."""

        async def keep() -> list[str]:
            async with opened(self.url) as database:
                users = [(await Users(database).add("user")).id for _ in range(count)]
                credentials = Credentials(database, keyring_of(SecretStr(key)))
                for user in users:
                    await credentials.store(user, "claude", user.encode())
            return users

        return asyncio.run(keep())

    def opens(self, keys: str, user: str) -> bytes:
        async def look() -> bytes:
            async with opened(self.url) as database:
                credentials = Credentials(database, keyring_of(SecretStr(keys)))
                return (await credentials.get(user, "claude"))[1]

        return asyncio.run(look())


@pytest.fixture
def controller(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    made = CommandLine(tmp_path, capsys)
    asyncio.run(migrate(made.url))
    return made


def test_a_rotation_says_how_many(controller: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    lost, old, new = new_key(), new_key(), new_key()
    controller.store(lost, 1)
    users = controller.store(old, 3) + controller.store(new, 2)
    monkeypatch.setenv(VARIABLE, f"{new}\n{old}\n")
    assert controller.rotate() == {"sealed": 3, "current": 2, "locked": 1}
    assert controller.rotate() == {"sealed": 0, "current": 5, "locked": 1}
    assert [controller.opens(new, user) for user in users] == [user.encode() for user in users]


def test_the_key_comes_from_systemds_credentials_too(
    controller: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "credentials-key").write_text(f"{new_key()}\n{new_key()}\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert controller.rotate() == {"sealed": 0, "current": 0, "locked": 0}


def test_without_a_key_nothing_is_rotated(controller: CommandLine) -> None:
    out, err = controller("credentials", "rotate", status=1)
    assert out == ""
    assert "error: this host keeps no credentials" in err
    assert "next:  an operator makes one with ./inv credentials.key" in err


@pytest.mark.parametrize(
    "words", [("credentials", "rotate"), ("health",), ("serve", "--only-if-healthy")]
)
def test_a_malformed_key_is_named_and_not_shown(
    controller: CommandLine, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv(VARIABLE, f"{new_key()}\nhidden")
    out, err = controller(*words, status=1)
    assert out == ""
    assert "credentials_key: must be keys of 32 bytes in base64" in err
    assert "next:  correct the secret credentials-key or " in err
    assert "Traceback" not in err
    assert "hidden" not in err

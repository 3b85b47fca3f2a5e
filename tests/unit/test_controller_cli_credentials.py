"""`master-controller credentials rotate`, and a start with an invalid key."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pydantic import SecretStr

from polydev.client.credentials_key import new_key
from polydev.controller.cli.verb import opened
from polydev.controller.credential_encryption import keyring_of
from polydev.controller.store.credentials import CredentialStore
from polydev.controller.store.users import Users
from tests.unit.command_line import CommandLine

NONE = {"sealed": 0, "current": 0, "locked": 0, "recipients": 0}
VARIABLE = "POLYDEV_CONTROLLER_CREDENTIALS_KEY"


def store(url: str, key: str, count: int) -> list[str]:
    """Add users with credentials sealed by this key; return their ids."""

    async def keep() -> list[str]:
        async with opened(url) as database:
            users = [(await Users(database).add("user")).id for _ in range(count)]
            credentials = CredentialStore(database, keyring_of(SecretStr(key)))
            for user in users:
                await credentials.store(user, "claude", user.encode())
        return users

    return asyncio.run(keep())


def unsealed(url: str, keys: str, user: str) -> bytes:
    async def look() -> bytes:
        async with opened(url) as database:
            credentials = CredentialStore(database, keyring_of(SecretStr(keys)))
            return (await credentials.get(user, "claude"))[1]

    return asyncio.run(look())


def test_rotate_counts_sealed_current_and_locked(
    controller: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, old, new = new_key(), new_key(), new_key()
    store(controller.url, lost, 1)
    users = store(controller.url, old, 3) + store(controller.url, new, 2)
    monkeypatch.setenv(VARIABLE, f"{new}\n{old}\n")
    assert controller("credentials", "rotate") == {**NONE, "sealed": 3, "current": 2, "locked": 1}
    assert controller("credentials", "rotate") == {**NONE, "current": 5, "locked": 1}
    assert [unsealed(controller.url, new, user) for user in users] == [
        user.encode() for user in users
    ]


def test_rotate_reads_the_key_from_systemd_credentials(
    controller: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "credentials-key").write_text(f"{new_key()}\n{new_key()}\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert controller("credentials", "rotate") == NONE


def test_rotate_without_a_key_is_refused(controller: CommandLine) -> None:
    err = controller.refused("credentials", "rotate")
    assert "error: this host cannot store credentials" in err
    assert "next:  an operator makes a key with ./inv credentials.key" in err


@pytest.mark.parametrize(
    "words", [("credentials", "rotate"), ("health",), ("serve", "--only-if-healthy")]
)
def test_malformed_key_is_refused_without_showing_it(
    controller: CommandLine, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv(VARIABLE, f"{new_key()}\nhidden")
    err = controller.refused(*words)
    assert "credentials_key: must be keys of 32 bytes in base64" in err
    assert "next:  correct the secret credentials-key or " in err
    assert "Traceback" not in err
    assert "hidden" not in err

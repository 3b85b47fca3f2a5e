"""Sealing of credentials: which key opens what, and which keys are valid."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from polydev.client.credentials_key import new_key
from polydev.controller.credential_encryption import Keyring, checked_recipient, key_id, keyring_of
from polydev.errors import ConfigError, CredentialsLocked

USER, OTHER = "0f9f6a0e-52a5-4f0f-8a9e-6d1d2b6f3c10", "5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01"
ONE, TWO = b"1" * 32, b"2" * 32


@given(st.binary(max_size=1000))
def test_sealed_credentials_open_again(plain: bytes) -> None:
    keys = Keyring([ONE])
    sealed = keys.seal(plain, USER, "claude")
    assert keys.open(sealed, USER, "claude") == plain
    assert sealed.key_id == key_id(ONE)


def test_sealing_twice_gives_different_data() -> None:
    keys = Keyring([ONE])
    assert len({keys.seal(b"x", USER, "claude").data for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("user", "provider"), [(OTHER, "claude"), (USER, "codex"), ("", f"{USER}\nclaude")]
)
def test_sealed_data_opens_for_its_user_and_provider_only(user: str, provider: str) -> None:
    keys = Keyring([ONE])
    sealed = keys.seal(b"x", USER, "claude")
    with pytest.raises(CredentialsLocked, match="belong to another user"):
        keys.open(sealed, user, provider)


def test_any_change_of_sealed_data_is_detected() -> None:
    keys = Keyring([ONE])
    sealed = keys.seal(b"x", USER, "claude")
    changed = [
        sealed.data[:at] + bytes([sealed.data[at] ^ 1]) + sealed.data[at + 1 :]
        for at in range(len(sealed.data))
    ]
    for data in [*changed, b"", sealed.data[:5], sealed.data[:12], sealed.data + b"x"]:
        with pytest.raises(CredentialsLocked, match="damaged"):
            keys.open(replace(sealed, data=data), USER, "claude")


def test_first_key_seals_and_every_key_opens() -> None:
    old = Keyring([ONE]).seal(b"x", USER, "claude")
    both = Keyring([TWO, ONE])
    assert both.open(old, USER, "claude") == b"x"
    assert both.seal(b"x", USER, "claude").key_id == key_id(TWO)
    with pytest.raises(CredentialsLocked, match=f"does not have their key, {key_id(ONE)}"):
        Keyring([TWO]).open(old, USER, "claude")


@pytest.mark.parametrize(
    "recipient",
    [
        "age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq5cu47z",
        "age1qyqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqj7vrya",
        "age1jz07tff4p9688ugj3ecm00y7g43q3ttq9xt63ckprhc7ljyvhdeqew6ude",
        "AGE-SECRET-KEY-1",
    ],
)
def test_invalid_age_recipients_are_refused(recipient: str) -> None:
    with pytest.raises(ValueError, match="is not an age recipient"):
        checked_recipient(recipient)


def test_secret_has_one_key_per_line() -> None:
    first, second = new_key(), new_key()
    keys = keyring_of(SecretStr(f"{first}\n\n  {second}\n"))
    assert keys is not None
    assert keys.first == key_id(base64.b64decode(first))
    for each in (first, second):
        own = keyring_of(SecretStr(each))
        assert own is not None
        assert keys.open(own.seal(b"x", USER, "claude"), USER, "claude") == b"x"
    assert keyring_of(None) is None


@pytest.mark.parametrize(
    "secret",
    [
        "",
        " \n",
        "hidden",
        "hidden\u00fc" * 5,
        base64.b64encode(b"hidden" * 5).decode(),
        base64.b64encode(b"h" * 64).decode(),
        f"{base64.b64encode(ONE).decode()}\nhidden",
        base64.b64encode(ONE).decode().rstrip("="),
    ],
)
def test_malformed_keys_are_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(ConfigError) as caught:
        keyring_of(SecretStr(secret))
    told = f"{caught.value.message} {caught.value.hint} {caught.value.__context__}"
    assert "secret credentials-key must be keys of 32 bytes in base64" in told
    assert not [line for line in secret.split() if line in told]


def test_keys_are_not_in_the_repr() -> None:
    keys = Keyring([ONE])
    assert "111" not in f"{keys!r} {vars(keys)!r}"

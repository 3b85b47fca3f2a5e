"""Encrypt (seal) and decrypt (open) credentials: AES-256-GCM with the keys in `credentials-key`.

A sealed value is a nonce, the ciphertext and its tag. It authenticates its user and provider too,
so it only opens in its own row. Credentials for a recipient are an age file instead
(https://age-encryption.org/v1), which no key of the host decrypts.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyrage
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import SecretStr

from polydev.errors import ConfigError, CredentialsLocked

SECRET_NAME = "credentials-key"  # noqa: S105 - a name
KEY_BYTES = 32
NONCE_BYTES = 12
KEY_ID_DIGITS = 16
MAX_CREDENTIALS_BYTES = 64 * 1024
# The key id of values that are encrypted to a recipient.
AGE = "age"
BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
CHECKSUM_LETTERS = 6


@dataclass(frozen=True)
class Sealed:
    """A stored value: `key_id` names the key that decrypts it, or `recipient` who can."""

    key_id: str
    data: bytes
    recipient: str | None = None


class Keyring:
    """Keys of the host. The first one encrypts, all of them decrypt."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self.first = key_id(keys[0])
        self._ciphers = {key_id(key): AESGCM(key) for key in keys}

    def seal(self, plain: bytes, user_id: str, provider: str) -> Sealed:
        nonce = os.urandom(NONCE_BYTES)
        cipher = self._ciphers[self.first]
        return Sealed(self.first, nonce + cipher.encrypt(nonce, plain, _owner(user_id, provider)))

    def open(self, sealed: Sealed, user_id: str, provider: str) -> bytes:
        """Decrypt. Raises CredentialsLocked if no key fits, or if it was sealed for another row."""
        cipher = self._ciphers.get(sealed.key_id)
        if cipher is None:
            raise _locked(f"this host does not have their key, {sealed.key_id}")
        nonce, text = sealed.data[:NONCE_BYTES], sealed.data[NONCE_BYTES:]
        try:
            return cipher.decrypt(nonce, text, _owner(user_id, provider))
        except (InvalidTag, ValueError):  # ValueError: too short to be a nonce
            raise _locked("they are damaged, or belong to another user") from None


def compact_json(credentials: Any) -> bytes:
    """Return credentials as JSON. Raises ValueError for values that JSON lacks, as infinity."""
    text = json.dumps(credentials, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode()


def checked_recipient(text: str) -> str:
    """Return an age recipient of an X25519 key. Raises ValueError for anything else."""
    try:
        recipient = str(pyrage.x25519.Recipient.from_str(text))
        # age panics for a point of small order, whose shared secret everybody knows.
        X25519PrivateKey.generate().exchange(_point(recipient))
    except (pyrage.RecipientError, ValueError):
        raise ValueError(
            "is not an age recipient of an X25519 key: age1…, as age-keygen prints it"
        ) from None
    return recipient


def _point(recipient: str) -> X25519PublicKey:
    """Return the key of a recipient with a valid checksum: Bech32, five bits a letter."""
    number = 0
    for letter in recipient.removeprefix("age1")[:-CHECKSUM_LETTERS]:
        number = number << 5 | BECH32.index(letter)
    return X25519PublicKey.from_public_bytes((number >> 4).to_bytes(32, "big"))


def sealed_to(recipient: str, plain: bytes) -> Sealed:
    """Return an armored age file, which the recipient decrypts with `age -d -i KEY`."""
    key = pyrage.x25519.Recipient.from_str(recipient)
    return Sealed(AGE, pyrage.encrypt(plain, [key], armored=True), recipient)


def _locked(why: str) -> CredentialsLocked:
    return CredentialsLocked(
        f"cannot decrypt the credentials: {why}",
        f"store them again, or have an operator add the missing key to {SECRET_NAME}",
    )


def _owner(user_id: str, provider: str) -> bytes:
    return f"polydev credentials\n{user_id}\n{provider}".encode()


def key_id(key: bytes) -> str:
    """Return the id by which rows name the key; it does not reveal the key."""
    return hashlib.sha256(key).hexdigest()[:KEY_ID_DIGITS]


def keyring_of(secret: SecretStr | None) -> Keyring | None:
    """Return the keys in the secret; None without one. Raises ConfigError for an invalid line."""
    if secret is None:
        return None
    lines = [line.strip() for line in secret.get_secret_value().splitlines() if line.strip()]
    keys = [_key(line) for line in lines]
    if not keys or None in keys:
        raise ConfigError(
            f"the secret {SECRET_NAME} must be keys of {KEY_BYTES} bytes in base64, one a line",
            "./inv credentials.key makes one",
        )
    if len(set(keys)) < len(keys):
        raise ConfigError(
            f"the secret {SECRET_NAME} has the same key twice", "remove one of the two lines"
        )
    return Keyring([key for key in keys if key is not None])


def _key(line: str) -> bytes | None:
    try:
        key = base64.b64decode(line, validate=True)
    except ValueError:
        return None
    return key if len(key) == KEY_BYTES else None

"""Checks of secrets. Each raises ValueError, whose words do not quote the secret.

Expensive modules are imported only if their secret is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pydantic import SecretStr

from polydev.errors import ConfigError

BYTE_ORDER_MARK = "\ufeff"
MIN_JWT_SECRET_BYTES = 32  # RFC 7518, 3.2: as long as the hash of HS256


def check_is_text(text: str) -> None:
    if text.startswith(BYTE_ORDER_MARK):
        raise ValueError("begins with a byte order mark: save it as plain UTF-8")
    if not text.strip():
        raise ValueError("is empty")


def check_jwt_secret(secret: str) -> None:
    from jwt.utils import is_pem_format, is_ssh_key

    plain = secret.encode()
    if len(plain) < MIN_JWT_SECRET_BYTES:
        raise ValueError(
            f"has {len(plain)} bytes, so tokens could be forged: at least {MIN_JWT_SECRET_BYTES} "
            "are needed (`openssl rand -base64 32` makes one)"
        )
    if is_pem_format(plain) or is_ssh_key(plain):  # PyJWT refuses these as secrets
        raise ValueError(
            "is a public or private key, but HS256 tokens are signed with a shared secret "
            "(`openssl rand -base64 32` makes one; for public keys set identity.jwks_url)"
        )


def check_credentials_key(secret: SecretStr) -> None:
    from polydev.controller.credential_encryption import SECRET_NAME, keyring_of

    try:
        keyring_of(secret)
    except ConfigError as error:
        words = error.message.removeprefix(f"the secret {SECRET_NAME} ")
        raise ValueError(f"{words} ({error.hint})") from None


def check_tls_key(key: str) -> None:
    from polydev.controller.tls import require_key

    require_key(key)


def check_tls_certificate(certificate: str) -> None:
    from polydev.controller.tls import certificates_of

    certificates_of(certificate)


def check_tls_pair(certificate: str, key: str) -> None:
    from polydev.controller.tls import require_fit

    require_fit(certificate, key)


def check_alert_urls(urls: str) -> None:
    for number, url in enumerate(urls.split(), 1):
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://.", url) is None:
            raise ValueError(f"address {number} is not an Apprise URL, such as mailto://…")


def check_webhook_secrets(secrets: str) -> None:
    from polydev.controller.webhook_signing import secrets_of

    secrets_of(secrets)


def check_endpoints_have_secrets(names: Iterable[str], secrets: str) -> None:
    from polydev.controller.webhook_signing import HOW_TO_MAKE, secrets_of

    known = secrets_of(secrets)
    for number, name in enumerate(names):
        if name not in known:
            raise ValueError(
                f"endpoints.{number}: the secret webhook-secrets has no line for {name} "
                f"({HOW_TO_MAKE})"
            )

"""Signatures of webhooks by the Standard Webhooks scheme, and the secrets for them. Pure.

The secret `webhook-secrets` has a line for each endpoint: its name and `whsec_…`, which is base64.
All lines of one name sign, so that a receiver can change its secret without a gap.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from datetime import datetime

from standardwebhooks import Webhook

PREFIX = "whsec_"
# As Standard Webhooks demands.
LEAST_BYTES, MOST_BYTES = 24, 64
HOW_TO_MAKE = 'echo "NAME whsec_$(openssl rand -base64 32)" makes one'


def secrets_of(text: str) -> dict[str, tuple[str, ...]]:
    """Return the secrets of each endpoint by its name, in the order of their lines.

    Raises ValueError, which quotes no secret.
    """
    found: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2:
            raise ValueError(f"line {number} is not a name and a secret ({HOW_TO_MAKE})")
        name, secret = words
        if trouble := _trouble(secret):
            raise ValueError(f"line {number}: its secret {trouble} ({HOW_TO_MAKE})")
        found[name] = (*found.get(name, ()), secret)
    return found


def _trouble(secret: str) -> str | None:
    if not secret.startswith(PREFIX):
        return f"does not begin with {PREFIX}"
    try:
        size = len(base64.b64decode(secret.removeprefix(PREFIX), validate=True))
    except (binascii.Error, ValueError):
        return f"is not base64 after {PREFIX}"
    if not LEAST_BYTES <= size <= MOST_BYTES:
        return f"has {size} bytes instead of {LEAST_BYTES} to {MOST_BYTES}"
    return None


def signed_headers(
    secrets: Sequence[str], message_id: str, at: datetime, body: str
) -> Mapping[str, str]:
    """Return the headers of one attempt; `at` is its time, in UTC, and not the event's."""
    signatures = [Webhook(secret).sign(message_id, at, body) for secret in secrets]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }

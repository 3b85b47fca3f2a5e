"""Receipts: a session's record of the credentials that were stored from it, and its event."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any

from polydev.controller.entities import Session


def receipt_values(plain: bytes, at: datetime) -> dict[str, Any]:
    """Return the fields of a session's receipt for credentials, which are compact JSON."""
    return {"credentials_sha256": hashlib.sha256(plain).hexdigest(), "credentials_at": at}


def receipt_words(session: Session) -> dict[str, object]:
    """Return the data of the event `credentials` for a session's receipt."""
    receipt = session.receipt
    assert receipt is not None
    return {
        "provider": receipt.provider,
        "kept": True,
        "sha256": receipt.sha256,
        "recipient": receipt.recipient,
    }

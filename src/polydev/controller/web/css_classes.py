"""Levels of states: the CSS classes of their colours in style.css."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from polydev.controller.host.system_status import Status
from polydev.controller.store.webhook_log import DeliveryState

Level = Literal["good", "warn", "bad", "over", "unknown"]
LEVELS: Mapping[Status, Level] = {
    "healthy": "good",
    "warning": "warn",
    "critical": "bad",
    "unknown": "unknown",
}
_OF_DEPLOYMENTS: Mapping[str, Level] = {
    "succeeded": "good",
    "running": "warn",
    "rolled-back": "warn",
}


_OF_DELIVERIES: Mapping[DeliveryState, Level] = {
    "delivered": "good",
    "waiting": "over",
    "failed": "bad",
}


def delivery_level(state: DeliveryState, attempts: int) -> Level:
    """Return the level of a webhook delivery; a waiting one warns after a failed attempt."""
    return "warn" if state == "waiting" and attempts else _OF_DELIVERIES[state]


def deployment_level(status: str) -> Level:
    """Return the level of a deployment's status; `bad` for an unknown one."""
    return _OF_DEPLOYMENTS.get(status, "bad")

"""Settings of webhooks: the endpoints, and limits of deliveries to them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from polydev.controller.settings.shared_types import MOST_DAYS, Seconds, Section
from polydev.controller.webhook_events import EVENT_TYPES, EventType
from polydev.controller.webhook_urls import checked_url


class WebhookEndpoint(Section):
    """A receiver of webhooks.

    name     its name in logs, alerts, verbs and in the lines of `webhook-secrets`
    events   the types of events that it gets; null: all
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    url: str
    events: Annotated[tuple[EventType, ...], Field(min_length=1)] | None = None

    @property
    def types(self) -> tuple[EventType, ...]:
        return EVENT_TYPES if self.events is None else self.events

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        return checked_url(url)


class WebhookSettings(Section):
    """The endpoints that get events of sessions and credentials, and limits of deliveries.

    timeout_seconds  for one attempt in all
    at_once          attempts at one endpoint at the same time, while it accepts deliveries
    most_waiting     deliveries that may wait for one endpoint; beyond that the oldest ones fail
    alert_seconds    for how long deliveries must have been failing before an alert is raised
    keep_days        how long deliveries can be looked up and sent again
    """

    endpoints: tuple[WebhookEndpoint, ...] = Field(default=(), max_length=16)
    timeout_seconds: float = Field(default=20, ge=1, le=25)
    at_once: int = Field(default=4, ge=1, le=32)
    most_waiting: int = Field(default=10_000, ge=1, le=1_000_000)
    alert_seconds: Seconds = 3600
    keep_days: int = Field(default=30, ge=1, le=MOST_DAYS)

    @field_validator("endpoints")
    @classmethod
    def _check_names(cls, endpoints: tuple[WebhookEndpoint, ...]) -> tuple[WebhookEndpoint, ...]:
        names = [each.name for each in endpoints]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two endpoints are named {name}")
        return endpoints

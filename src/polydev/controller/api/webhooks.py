"""Webhooks, for operators: endpoints, the log of deliveries, resending, test messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import ConfigDict

from polydev.controller.api.documented_errors import error_responses
from polydev.controller.api.pagination import MAX_ID, BeforeId, page_of
from polydev.controller.api.url_numbers import WholeNumber
from polydev.controller.api_model import ApiModel
from polydev.controller.app_services import Services
from polydev.controller.entities import now
from polydev.controller.settings import WebhookEndpoint
from polydev.controller.store.webhook_log import Backlog, Delivery, DeliveryState
from polydev.controller.webhook_urls import shown_url, url_digest

MOST_LISTED = 1000
FAILED_LATELY = timedelta(days=1)
EXAMPLE: dict[str, Any] = {
    "id": 17,
    "webhookId": "msg_0f5c8f0e7b7b4c3f9d0c1a2b3c4d5e6f",
    "type": "session.ready",
    "timestamp": "2026-11-21T10:15:22Z",
    "endpoint": "front-end",
    "state": "waiting",
    "attempts": 2,
    "dueAt": "2026-11-21T10:20:40Z",
    "attemptedAt": "2026-11-21T10:15:28Z",
    "endedAt": None,
    "status": 500,
    "problem": "it answered 500: no database",
    "message": {
        "type": "session.ready",
        "timestamp": "2026-11-21T10:15:22.104411Z",
        "data": {
            "sessionId": "5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01",
            "userId": "0f9f6a0e-52a5-4f0f-8a9e-6d1d2b6f3c10",
            "provider": "claude",
            "state": "vm_created",
        },
    },
}
NO_DELIVERY = (
    "No such delivery, or its endpoint is not configured",
    {
        "type": "urn:polydev:error:webhook-delivery-not-found",
        "title": "Not Found",
        "detail": "there is no webhook delivery 17",
        "hint": "./inv webhooks lists all deliveries",
    },
)
NO_ENDPOINT = (
    "No endpoint of that name is configured",
    {
        "type": "urn:polydev:error:webhook-endpoint-not-found",
        "title": "Not Found",
        "detail": "there is no webhook endpoint front-end",
        "hint": "its endpoints are audit",
    },
)

DeliveryId = Annotated[WholeNumber, Path(ge=1, le=MAX_ID, description="The delivery's id")]
EndpointName = Annotated[str, Path(max_length=64, description="The endpoint's name")]


class DeliveryAnswer(ApiModel):
    """The delivery of one event to one endpoint. `timestamp` is the time of the event.

    webhookId    the header `webhook-id`, the same for all attempts
    dueAt        when it is sent next; null if it is not waiting
    attemptedAt  when it was sent last; `status` and `problem` are those of that attempt
    message      the body
    """

    model_config = ConfigDict(title="WebhookDelivery", json_schema_extra={"examples": [EXAMPLE]})

    id: int
    webhook_id: str
    type: str
    timestamp: datetime
    endpoint: str
    state: DeliveryState
    attempts: int
    due_at: datetime | None
    attempted_at: datetime | None
    ended_at: datetime | None
    status: int | None
    problem: str | None
    message: Mapping[str, Any]


class DeliveryList(ApiModel):
    """Newest first. Send `next` as `before` to get the next page; null: this is the last one."""

    model_config = ConfigDict(title="WebhookDeliveryList")

    deliveries: list[DeliveryAnswer]
    next: int | None


class EndpointAnswer(ApiModel):
    """A receiver of webhooks. `url` has no query.

    wantsMore     false after it answered 410 Gone: nothing more is sent to that URL
    waiting       number of waiting deliveries
    failingSince  the time of the oldest waiting event with a failed attempt
    failedLately  number of deliveries that failed for good within a day
    """

    model_config = ConfigDict(title="WebhookEndpoint")

    name: str
    url: str
    events: list[str]
    wants_more: bool
    waiting: int
    failing_since: datetime | None
    failed_lately: int


class EndpointList(ApiModel):
    """The endpoints, in the order of the configuration."""

    model_config = ConfigDict(title="WebhookEndpointList")

    endpoints: list[EndpointAnswer]


class TrialAnswer(ApiModel):
    """The result of a test message.

    taken   whether it would count as delivered
    status  of the answer; null without one
    said    the beginning of the answer, or why there was none
    """

    model_config = ConfigDict(title="WebhookTrial")

    endpoint: str
    taken: bool
    status: int | None
    said: str
    seconds: float


def add_webhooks(router: APIRouter, services: Services) -> None:
    _add_endpoints(router, services)
    _add_deliveries(router, services)


def _add_endpoints(router: APIRouter, services: Services) -> None:
    @router.get(
        "/webhooks/endpoints",
        summary="The endpoints of webhooks, with their backlogs",
        responses=error_responses(),
    )
    async def list_endpoints() -> EndpointList:
        gone = await services.webhook_log.gone()
        backlogs = await services.webhook_log.backlogs(now() - FAILED_LATELY)
        return EndpointList(
            endpoints=[
                _endpoint(each, gone.get(each.name), backlogs.get(each.name, Backlog()))
                for each in services.settings.webhooks.endpoints
            ]
        )

    @router.post(
        "/webhooks/endpoints/{name}/try",
        summary="Send a signed test message to an endpoint",
        description="Its type is `webhook.test`. An endpoint that answered 410 Gone before and "
        "accepts the message gets webhooks again.",
        responses=error_responses(422, own={404: NO_ENDPOINT}),
    )
    async def try_endpoint(name: EndpointName) -> TrialAnswer:
        reply = await services.deliveries.try_endpoint(name)
        return TrialAnswer(
            endpoint=name,
            taken=reply.is_taken,
            status=reply.status,
            said=reply.said,
            seconds=reply.seconds,
        )


def _add_deliveries(router: APIRouter, services: Services) -> None:
    @router.get(
        "/webhooks/deliveries",
        summary="The log of webhook deliveries, newest first",
        responses=error_responses(422),
    )
    async def list_deliveries(
        state: DeliveryState | None = None,
        endpoint: Annotated[str | None, Query(max_length=64)] = None,
        limit: Annotated[WholeNumber, Query(ge=1, le=MOST_LISTED)] = 100,
        before: BeforeId = None,
    ) -> DeliveryList:
        found = await services.webhook_log.list(state, endpoint, limit + 1, before)
        page, following = page_of(found, limit, lambda delivery: delivery.id)
        return DeliveryList(deliveries=[_delivery(each) for each in page], next=following)

    @router.get(
        "/webhooks/deliveries/{delivery_id}",
        summary="A webhook delivery",
        responses=error_responses(422, own={404: NO_DELIVERY}),
    )
    async def get_delivery(delivery_id: DeliveryId) -> DeliveryAnswer:
        return _delivery(await services.webhook_log.get(delivery_id))

    @router.post(
        "/webhooks/deliveries/{delivery_id}/resend",
        status_code=202,
        summary="Send a webhook delivery again, with all of its attempts",
        description="Its `webhook-id` stays the same. An endpoint that answered 410 Gone before "
        "gets webhooks again.",
        responses=error_responses(422, own={404: NO_DELIVERY}),
    )
    async def resend(delivery_id: DeliveryId) -> DeliveryAnswer:
        delivery = await services.webhook_log.get(delivery_id)
        sender = services.deliveries.sender(delivery.endpoint)
        again = await services.webhook_log.resend(delivery_id)
        sender.resume()
        return _delivery(again)


def _endpoint(endpoint: WebhookEndpoint, gone: str | None, backlog: Backlog) -> EndpointAnswer:
    return EndpointAnswer(
        name=endpoint.name,
        url=shown_url(endpoint.url),
        events=list(endpoint.types),
        wants_more=gone != url_digest(endpoint.url),
        waiting=backlog.waiting,
        failing_since=backlog.failing_since,
        failed_lately=backlog.failed,
    )


def _delivery(delivery: Delivery) -> DeliveryAnswer:
    told = {
        name: getattr(delivery, name)
        for name in DeliveryAnswer.model_fields.keys() & vars(delivery)
    }
    return DeliveryAnswer(
        **told,
        webhook_id=delivery.message_id,
        timestamp=delivery.at,
        message=json.loads(delivery.body),
    )

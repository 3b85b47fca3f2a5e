"""Queue events for each endpoint, and run a sender for each.

Only the leader does this. At its end it finishes or releases the deliveries that it has claimed.
Deliveries that a killed process had claimed are due again once the claim expires.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

import structlog
from prometheus_client import CollectorRegistry, Counter

from polydev.controller.entities import now
from polydev.controller.settings import WebhookSettings
from polydev.controller.store.webhook_queue import Subscription, WebhookQueue
from polydev.controller.webhook_events import TEST_TYPE, body_of, new_message_id
from polydev.controller.webhook_urls import url_digest
from polydev.controller.webhooks.endpoint_sender import (
    DATABASE_TROUBLE,
    EndpointSender,
    SenderIntervals,
)
from polydev.controller.webhooks.http_post import WebhookReply
from polydev.errors import EndpointNotFound

log = structlog.stdlib.get_logger(__name__)


class Deliveries:
    """The deliveries of all endpoints. Each process runs `run`; only the leader sends."""

    def __init__(
        self,
        settings: WebhookSettings,
        secrets: Mapping[str, tuple[str, ...]],
        store: WebhookQueue,
        *,
        leads: Callable[[], bool],
        clock: Callable[[], datetime] = now,
        pace: SenderIntervals | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        attempts = Counter(
            "polydev_webhook_attempts",
            "Attempts to deliver a webhook",
            ["endpoint", "result"],
            registry=registry or CollectorRegistry(),
        )
        self._settings = settings
        self._store = store
        self._leads = leads
        self._clock = clock
        self._pace = pace or SenderIntervals()
        self._pruned_at: datetime | None = None
        self._senders = {
            each.name: EndpointSender(
                each, secrets[each.name], settings, store, self._pace, clock, attempts
            )
            for each in settings.endpoints
        }

    async def run(self) -> None:
        """Queue and send while this process leads, until cancelled."""
        tasks: list[asyncio.Task[None]] = []
        try:
            while True:
                try:
                    if self._leads():
                        tasks = tasks or await self._begin()
                        await self._queue()
                        await self._prune()
                except DATABASE_TROUBLE as error:
                    log.warning("webhooks_not_queued", error=type(error).__name__)
                for task in tasks:
                    if task.done():
                        task.result()
                # Without endpoints, events only have to be deleted some time.
                await asyncio.sleep(self._pace.queue if self._senders else self._pace.look)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _begin(self) -> list[asyncio.Task[None]]:
        if failed := await self._store.fail_unknown(list(self._senders)):
            log.warning("webhook_endpoints_not_configured", failed_deliveries=failed)
        return [asyncio.create_task(each.run()) for each in self._senders.values()]

    async def _queue(self) -> None:
        if not await self._store.has_new():
            return
        gone = await self._store.gone()
        subscriptions = [
            Subscription(each.name, each.types, is_gone=gone.get(each.name) == url_digest(each.url))
            for each in self._settings.endpoints
        ]
        for name in await self._store.queue(subscriptions, self._settings.most_waiting):
            self._senders[name].wake()

    async def _prune(self) -> None:
        at = self._clock()
        every = timedelta(seconds=self._pace.prune)
        if self._pruned_at is None or at - self._pruned_at >= every:
            await self._store.prune(at - timedelta(days=self._settings.keep_days))
            self._pruned_at = at

    def sender(self, name: str) -> EndpointSender:
        """Return the sender of an endpoint. Raises EndpointNotFound."""
        if name not in self._senders:
            names = ", ".join(self._senders)
            raise EndpointNotFound(
                f"there is no webhook endpoint {name}",
                f"its endpoints are {names}" if names else "docs/webhooks.md says how to add one",
            )
        return self._senders[name]

    async def try_endpoint(self, name: str) -> WebhookReply:
        """Send a test message. An endpoint that accepts it gets webhooks again after a 410.

        Raises EndpointNotFound.
        """
        reply = await self.sender(name).send(
            new_message_id(), body_of(TEST_TYPE, self._clock(), {})
        )
        if reply.is_taken:
            await self._store.unmark_gone(name)
        return reply

    async def close(self) -> None:
        for sender in self._senders.values():
            await sender.close()

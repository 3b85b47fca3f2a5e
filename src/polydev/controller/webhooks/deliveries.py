"""Queues what the store has written for each endpoint, and has it sent by a lane for each.

Only the process that leads does so. What it has claimed when it ends it either finishes or gives
back; what a killed one had claimed is due again once the claim is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

import structlog
from prometheus_client import CollectorRegistry, Counter

from polydev.controller.model import now
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
    """`run` it in a task, in each process that serves; the one that `leads` sends."""

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
        self._lanes = {
            each.name: EndpointSender(
                each, secrets[each.name], settings, store, self._pace, clock, attempts
            )
            for each in settings.endpoints
        }

    async def run(self) -> None:
        """Queue and send while it is this process that leads, until cancelled."""
        lanes: list[asyncio.Task[None]] = []
        try:
            while True:
                try:
                    if self._leads():
                        lanes = lanes or await self._begin()
                        await self._queue()
                        await self._prune()
                except DATABASE_TROUBLE as error:
                    log.warning("webhooks_not_queued", error=type(error).__name__)
                for lane in lanes:
                    if lane.done():
                        lane.result()
                # Where nobody is to be told, events only have to go some time.
                await asyncio.sleep(self._pace.queue if self._lanes else self._pace.look)
        finally:
            for lane in lanes:
                lane.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)

    async def _begin(self) -> list[asyncio.Task[None]]:
        if failed := await self._store.fail_unknown(list(self._lanes)):
            log.warning("webhook_endpoints_not_configured", failed_deliveries=failed)
        return [asyncio.create_task(each.run()) for each in self._lanes.values()]

    async def _queue(self) -> None:
        if not await self._store.has_new():
            return
        gone = await self._store.gone()
        subscriptions = [
            Subscription(each.name, each.types, is_gone=gone.get(each.name) == url_digest(each.url))
            for each in self._settings.endpoints
        ]
        for name in await self._store.queue(subscriptions, self._settings.most_waiting):
            self._lanes[name].wake()

    async def _prune(self) -> None:
        at = self._clock()
        every = timedelta(seconds=self._pace.prune)
        if self._pruned_at is None or at - self._pruned_at >= every:
            await self._store.prune(at - timedelta(days=self._settings.keep_days))
            self._pruned_at = at

    def lane(self, name: str) -> EndpointSender:
        """Raises EndpointNotFound."""
        if name not in self._lanes:
            names = ", ".join(self._lanes)
            raise EndpointNotFound(
                f"there is no webhook endpoint {name}",
                f"this host has {names}" if names else "docs/webhooks.md says how to name one",
            )
        return self._lanes[name]

    async def try_endpoint(self, name: str) -> WebhookReply:
        """Send an endpoint a test message; one that takes it is sent messages again.

        Raises EndpointNotFound.
        """
        reply = await self.lane(name).send(new_message_id(), body_of(TEST_TYPE, self._clock(), {}))
        if reply.is_taken:
            await self._store.unmark_gone(name)
        return reply

    async def close(self) -> None:
        for lane in self._lanes.values():
            await lane.close()

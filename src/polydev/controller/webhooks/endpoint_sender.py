"""The deliveries of one endpoint, sent in the background: none waits for another endpoint's."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import httpx
import structlog
from prometheus_client import Counter
from sqlalchemy.exc import SQLAlchemyError

from polydev.controller.settings import WebhookEndpoint, WebhookSettings
from polydev.controller.store.webhook_queue import Claim, WebhookQueue
from polydev.controller.webhook_signing import signed_headers
from polydev.controller.webhook_urls import url_digest
from polydev.controller.webhooks.http_post import GONE_STATUS, WebhookReply, open_client, post
from polydev.controller.webhooks.retry_schedule import next_attempt
from polydev.vm.timeouts import end

log = structlog.stdlib.get_logger(__name__)

Result = Literal["delivered", "retried", "failed"]
# Of an endpoint as a whole, where it asks for one.
MOST_PAUSE_SECONDS = 3600.0
DATABASE_TROUBLE = (SQLAlchemyError, OSError, asyncio.TimeoutError)


@dataclass(frozen=True)
class SenderIntervals:
    """In seconds: how often new events and, without a wake-up, deliveries are looked for; how long
    a claim lasts beyond an attempt's time; how long attempts under way may take at the end; how
    often old events are deleted.
    """

    queue: float = 1.0
    look: float = 10.0
    claim: float = 30.0
    ending: float = 5.0
    prune: float = 3600.0


class EndpointSender:
    """The deliveries of one endpoint: each at its time, a few at once.

    As long as the endpoint has not taken one, and after one that it did not take, it is sent one
    at a time. Where it asks for a pause, nothing is sent before that is over.
    """

    def __init__(
        self,
        endpoint: WebhookEndpoint,
        secrets: tuple[str, ...],
        settings: WebhookSettings,
        store: WebhookQueue,
        pace: SenderIntervals,
        clock: Callable[[], datetime],
        attempts: Counter,
    ) -> None:
        self.endpoint = endpoint
        self._attempts = attempts
        self._secrets = secrets
        self._settings = settings
        self._store = store
        self._pace = pace
        self._clock = clock
        self._client: httpx.AsyncClient | None = None
        self._woken = asyncio.Event()
        self._takes = False
        self._paused_until: datetime | None = None
        self._under_way: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """Look at once: something may be due."""
        self._woken.set()

    def resume(self) -> None:
        """Look at once, whatever pause the endpoint asked for: an operator wants it."""
        self._paused_until = None
        self._woken.set()

    async def run(self) -> None:
        """Send what is due until cancelled."""
        try:
            while True:
                self._woken.clear()
                try:
                    pause = await self._begin_due()
                except DATABASE_TROUBLE as error:
                    self._complain(error)
                    pause = self._pace.look
                timer = asyncio.get_running_loop().call_later(pause, self._woken.set)
                try:
                    await self._woken.wait()
                finally:
                    timer.cancel()
        finally:
            if self._under_way:
                await asyncio.wait(self._under_way, timeout=self._pace.ending)
            await end(*self._under_way)

    async def _begin_due(self) -> float:
        """Begin as many attempts as may be; for how long nothing more is to be done."""
        at = self._clock()
        if self._paused_until is not None and at < self._paused_until:
            return min((self._paused_until - at).total_seconds(), self._pace.look)
        room = (self._settings.at_once if self._takes else 1) - len(self._under_way)
        if room <= 0:
            return self._pace.look  # the end of an attempt wakes us
        lasts = self._settings.timeout_seconds + self._pace.claim
        claims = await self._store.claim(self.endpoint.name, room, at + timedelta(seconds=lasts))
        for each in claims:
            task = asyncio.create_task(self._deliver(each))
            self._under_way.add(task)
            task.add_done_callback(self._ended)
        due = await self._store.next_due(self.endpoint.name)
        if due is None or len(claims) == room:
            return self._pace.look
        return min(max((due - self._clock()).total_seconds(), 0.0), self._pace.look)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._woken.set()
        if not task.cancelled() and (error := task.exception()):
            self._complain(error)

    def _complain(self, error: BaseException) -> None:
        # Its own words would quote the statement.
        name = self.endpoint.name
        log.warning("webhook_not_noted", endpoint=name, error=type(error).__name__)

    async def _deliver(self, claim: Claim) -> None:
        try:
            reply = await self.send(claim.message_id, claim.body)
        except asyncio.CancelledError:
            await self._store.release(claim)
            raise
        self._takes = reply.is_taken
        if reply.status is not None and reply.is_taken:
            self._count("delivered")
            await self._store.delivered(claim, reply.status)
            return
        await self._not_taken(claim, reply)

    async def _not_taken(self, claim: Claim, reply: WebhookReply) -> None:
        at, problem, due = self._clock(), reply.problem or "", None
        if reply.retry_after_seconds:
            pause = min(reply.retry_after_seconds, MOST_PAUSE_SECONDS)
            self._paused_until = at + timedelta(seconds=pause)
        if reply.status != GONE_STATUS:
            chance = random.random()  # noqa: S311  # when to try again is no secret
            due = next_attempt(claim.attempts + 1, at, chance, reply.retry_after_seconds)
        self._count("retried" if due else "failed")
        log.warning(
            "webhook_not_delivered",
            endpoint=claim.endpoint,
            delivery=claim.id,
            attempts=claim.attempts + 1,
            problem=problem,
            due_at=due.isoformat() if due else None,
        )
        await self._store.not_delivered(claim, reply.status, problem, due)
        if reply.status == GONE_STATUS:
            await self._store.mark_gone(claim.endpoint, url_digest(self.endpoint.url))

    def _count(self, result: Result) -> None:
        self._attempts.labels(self.endpoint.name, result).inc()

    async def send(self, message_id: str, body: str) -> WebhookReply:
        """Post a message, signed as of now, and say what came of it."""
        at, settings = self._clock(), self._settings
        headers = signed_headers(self._secrets, message_id, at, body)
        if self._client is None:  # not before it is needed: it reads all authorities
            self._client = open_client(settings.at_once, settings.timeout_seconds)
        url = self.endpoint.url
        return await post(self._client, url, headers, body, settings.timeout_seconds, at)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

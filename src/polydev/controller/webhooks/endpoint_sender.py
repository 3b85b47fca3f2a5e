"""Send the deliveries of one endpoint in the background, independent of other endpoints."""

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
from polydev.vm.cancel_on_timeout import end

log = structlog.stdlib.get_logger(__name__)

Result = Literal["delivered", "retried", "failed"]
# The longest pause that an endpoint can ask for.
MOST_PAUSE_SECONDS = 3600.0
DATABASE_TROUBLE = (SQLAlchemyError, OSError, asyncio.TimeoutError)


@dataclass(frozen=True)
class SenderIntervals:
    """Intervals in seconds.

    queue    between checks for new events
    look     between checks for due deliveries
    claim    how long a claim lasts beyond the timeout of an attempt
    ending   how long running attempts may take at the end
    prune    between deletions of old events
    """

    queue: float = 1.0
    look: float = 10.0
    claim: float = 30.0
    ending: float = 5.0
    prune: float = 3600.0


class EndpointSender:
    """Sends the deliveries of one endpoint when they are due, a few at once.

    Deliveries are sent one at a time until the endpoint has accepted one, and again after it
    refused one. If it asks for a pause, nothing is sent before its end.
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
        """Check for due deliveries at once."""
        self._woken.set()

    def resume(self) -> None:
        """Check at once, and ignore the pause that the endpoint asked for: an operator wants it."""
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
        """Begin all attempts that are allowed. Return the seconds until the next check."""
        at = self._clock()
        if self._paused_until is not None and at < self._paused_until:
            return min((self._paused_until - at).total_seconds(), self._pace.look)
        room = (self._settings.at_once if self._takes else 1) - len(self._under_way)
        if room <= 0:
            return self._pace.look  # the end of an attempt wakes the sender
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
        # The message of the error would quote the statement.
        name = self.endpoint.name
        log.warning("webhook_result_not_saved", endpoint=name, error=type(error).__name__)

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
            chance = random.random()  # noqa: S311  # the time of an attempt is not a secret
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
        """Sign and post a message, and return the result."""
        at, settings = self._clock(), self._settings
        headers = signed_headers(self._secrets, message_id, at, body)
        if self._client is None:  # expensive: reads all certificate authorities
            self._client = open_client(settings.at_once, settings.timeout_seconds)
        url = self.endpoint.url
        return await post(self._client, url, headers, body, settings.timeout_seconds, at)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

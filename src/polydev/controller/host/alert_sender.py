"""Sends messages about alerts to the services that the inventory names, with Apprise.

URLs may hold secrets, so no log has one, and Apprise itself logs nothing: logs name a target by its
place in the list and its service.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import structlog
from pydantic import SecretStr

from polydev.controller.host.alert_outbox import AlertMessage, Outbox, OutboxFull
from polydev.vm.cancel_on_timeout import limited

if TYPE_CHECKING:
    from apprise import Apprise

log = structlog.stdlib.get_logger(__name__)

TIMEOUT_SECONDS = 20.0
# Between the attempts; one more is made than there are pauses.
PAUSES_SECONDS = (1.0, 5.0, 25.0)
# How often to look for messages that another process left behind.
LOOK_SECONDS = 10.0
# They log addresses, with what is secret in them.
TALKATIVE = ("apprise", "urllib3", "requests")

SendResult = Literal["sent", "failed"]


@dataclass(frozen=True)
class AlertTarget:
    number: int
    service: str
    send_by: Apprise


def apprise_of(url: str) -> Apprise | None:
    """Return a sender for an address; None where Apprise does not support it."""
    from apprise import Apprise  # slow to import, and only needed here

    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    send_by = Apprise()
    return send_by if send_by.add(url) else None


class AlertSender:
    """Queues messages in the outbox and sends them in their order while `run` runs.

    `counts` has how many messages were sent, and how many failed, by service.
    """

    def __init__(
        self,
        urls: SecretStr | None,
        outbox: Outbox,
        pauses_seconds: Sequence[float] = PAUSES_SECONDS,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._urls = urls.get_secret_value().split() if urls else []
        self._pauses_seconds = pauses_seconds
        self._timeout_seconds = timeout_seconds
        self._outbox = outbox
        self._woken = asyncio.Event()
        self.counts: Counter[tuple[str, SendResult]] = Counter()

    def send(self, message: AlertMessage) -> None:
        if not self._urls:
            return
        try:
            self._outbox.put(message)
        except (OutboxFull, OSError) as error:
            self.counts["any", "failed"] += 1
            reason = type(error).__name__
            log.error("alert_message_lost", message=message.title, error=reason)
        self._woken.set()

    async def run(self) -> None:
        """Send until cancelled, also what an earlier process left; a later one sends the rest."""
        if not self._urls:
            return
        targets = await asyncio.to_thread(self._open)
        while True:
            self._woken.clear()
            for path in self._outbox.waiting():
                with self._outbox.taken(path) as message:
                    if message is not None:
                        await asyncio.gather(*(self._deliver(message, each) for each in targets))
            with suppress(asyncio.TimeoutError):
                await limited(LOOK_SECONDS, self._woken.wait())

    def _open(self) -> list[AlertTarget]:
        targets = []
        for number, url in enumerate(self._urls, start=1):
            if send_by := apprise_of(url):
                targets.append(AlertTarget(number, str(next(iter(send_by)).service_name), send_by))
            else:
                self.counts["unknown", "failed"] += 1
                log.error("alert_url_not_usable", target=number)
        return targets

    async def _deliver(self, message: AlertMessage, target: AlertTarget) -> None:
        for pause_seconds in (*self._pauses_seconds, None):
            if await self._attempt(message, target):
                self.counts[target.service, "sent"] += 1
                return
            if pause_seconds is not None:
                await asyncio.sleep(pause_seconds)
        self.counts[target.service, "failed"] += 1
        log.error(
            "alert_message_not_sent",
            target=target.number,
            service=target.service,
            attempts=len(self._pauses_seconds) + 1,
            message=message.title,
        )

    async def _attempt(self, message: AlertMessage, target: AlertTarget) -> bool:
        from apprise import NotifyType

        sending = target.send_by.async_notify(
            body=message.body, title=message.title, notify_type=NotifyType(message.kind)
        )
        try:
            return bool(await limited(self._timeout_seconds, sending))
        except Exception as error:  # a plugin may raise anything; its text may hold the URL
            log.warning(
                "alert_message_attempt_failed",
                target=target.number,
                service=target.service,
                error=type(error).__name__,
            )
            return False

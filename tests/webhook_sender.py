"""A process that sends webhooks until it is killed.

python -m tests.webhook_sender DATABASE URL SECONDS; its clock is so much ahead.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import datetime, timedelta

from polydev.controller.database import create_engine
from polydev.controller.entities import now
from polydev.controller.settings import WebhookEndpoint, WebhookSettings
from polydev.controller.store.transactions import Database
from polydev.controller.store.webhook_queue import WebhookQueue
from polydev.controller.webhooks.deliveries import Deliveries
from polydev.controller.webhooks.endpoint_sender import SenderIntervals

SECRET = "whsec_" + "front" * 8


def main(database_url: str, url: str, ahead_seconds: str) -> None:
    ahead = timedelta(seconds=float(ahead_seconds))

    def clock() -> datetime:
        return now() + ahead

    endpoint = WebhookEndpoint(name="front", url=url)
    store = WebhookQueue(Database(create_engine(database_url)), clock)
    sending = Deliveries(
        WebhookSettings(endpoints=(endpoint,)),
        {"front": (SECRET,)},
        store,
        leads=lambda: True,
        clock=clock,
        pace=SenderIntervals(queue=0.05, look=0.05),
    )
    asyncio.run(sending.run())


if __name__ == "__main__":
    main(*sys.argv[1:])

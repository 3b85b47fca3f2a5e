"""The receiver of docs/webhooks.md as a process, with real requests of a host."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from subprocess import PIPE

import httpx
import pytest

from polydev.controller.settings import WebhookEndpoint, WebhookSettings
from polydev.controller.store.webhook_log import WebhookLog
from polydev.controller.store.webhook_queue import WebhookQueue
from polydev.controller.webhook_signing import signed_headers
from polydev.controller.webhooks.deliveries import Deliveries
from polydev.controller.webhooks.endpoint_sender import SenderIntervals
from polydev.processes import spawn, wait_or_end
from tests.databases import sqlite_url
from tests.ports import reserved_port
from tests.stores import copy_migrated_database, opened, run_async
from tests.webhooks import ENOUGH_SECONDS, until_states

DOCUMENT = Path(__file__).parents[2] / "docs/webhooks.md"
SECRET = "whsec_" + "front" * 8
BODY = '{"type":"session.ready","timestamp":"2026-11-29T10:15:22.104411Z","data":{}}'


class Receiver:
    """The documented receiver; it prints a line for each new message."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self._log = log

    def lines(self) -> list[str]:
        return [line for line in self._log.read_text().splitlines() if line.startswith("new")]


@contextmanager
def receiving(folder: Path) -> Iterator[Receiver]:
    (code,) = re.findall(r"^```python\n(\"\"\"Receives.*?)^```", DOCUMENT.read_text(), re.M | re.S)
    program, log = folder / "receiver.py", folder / "said"
    program.write_text(code)
    with reserved_port() as port:
        environment = {
            "PORT": str(port),
            "WEBHOOK_SECRET": SECRET,
            "WEBHOOK_DATABASE": str(folder / "messages.sqlite3"),
            "PATH": os.environ["PATH"],
        }
        with log.open("wb") as said:
            process = spawn([sys.executable, program], env=environment, stdout=said, stderr=PIPE)
        try:
            url = f"http://127.0.0.1:{port}/"
            while True:
                assert process.poll() is None, process.stderr and process.stderr.read()
                with suppress(httpx.ConnectError):
                    asyncio.run(asked(url, {}))
                    break
            yield Receiver(url, log)
        finally:
            process.terminate()
            wait_or_end(process, 10)


async def asked(url: str, headers: dict[str, str], body: str = BODY) -> int:
    async with httpx.AsyncClient(trust_env=False, timeout=ENOUGH_SECONDS) as client:
        return (await client.post(url, headers=headers, content=body)).status_code


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with receiving(tmp_path) as one:
        yield one


def test_receiver_refuses_wrong_or_old_signatures(receiver: Receiver) -> None:
    def signed(at: datetime, secret: str = SECRET, body: str = BODY) -> dict[str, str]:
        return dict(signed_headers([secret], "msg_1", at, body))

    async def scenario() -> None:
        at, url = datetime.now(timezone.utc), receiver.url
        right = signed(at)
        other = signed(at, "whsec_" + "other" * 8)
        refused = {
            "no headers": {},
            "another secret": other,
            "another body": signed(at, body="{}"),
            "another id": {**right, "webhook-id": "msg_2"},
            "another time": {**right, "webhook-timestamp": str(int(at.timestamp()) + 1)},
            "an old time": signed(at - timedelta(minutes=6)),
            "a time to come": signed(at + timedelta(minutes=6)),
            "no signature": {**right, "webhook-signature": "v1,"},
            "nothing of the scheme": {**right, "webhook-signature": "x"},
            "another scheme": {
                **right,
                "webhook-signature": f"v2,{right['webhook-signature'][3:]}",
            },
        }
        for what, headers in refused.items():
            assert await asked(url, headers) == 401, what
        assert await asked(url, right, "x" * 70_000) == 413
        assert receiver.lines() == []
        both = f"{other['webhook-signature']} {right['webhook-signature']}"
        assert await asked(url, {**right, "webhook-signature": both}) == 204

    asyncio.run(scenario())
    assert len(receiver.lines()) == 1


@run_async
async def test_receiver_ignores_repeated_messages(receiver: Receiver, tmp_path: Path) -> None:
    """The host sends the message, and an operator resends it."""
    copy_migrated_database(tmp_path / "controller.sqlite3")
    endpoint = WebhookEndpoint(name="front", url=receiver.url)
    async with opened(sqlite_url(tmp_path)) as store:
        await store.start_ready(await store.new_user())
        deliveries = Deliveries(
            WebhookSettings(endpoints=(endpoint,)),
            {"front": (SECRET,)},
            WebhookQueue(store.database),
            leads=lambda: True,
            pace=SenderIntervals(queue=0.02, look=0.02),
        )
        log = WebhookLog(store.database)

        sending = asyncio.create_task(deliveries.run())
        try:
            await until_states(store, delivered=2)
            first, second = await log.list()
            for each in (first, second):
                await log.resend(each.id)
            await until_states(store, delivered=2)
            assert [each.message_id for each in await log.list()] == [
                first.message_id,
                second.message_id,
            ]
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            await deliveries.close()
    assert sorted(line.split()[1] for line in receiver.lines()) == [
        "session.created",
        "session.ready",
    ]

"""The webhooks' outbox on both databases: written with the change, queued once, claimed by one."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import pytest

from polydev.controller.store import tables
from polydev.controller.store.session_changes import change_session, locked_session
from polydev.controller.store.webhook_queue import GONE, UNKNOWN, WebhookQueue, write_event
from tests.stores import opened, run_async
from tests.webhooks import claim, deliveries, event_types, rows, subscription_of

pytest_plugins = ["tests.databases"]


@run_async
async def test_session_changes_write_events_without_texts(
    store_url: str,
) -> None:
    async with opened(store_url) as store:
        user = await store.new_user()
        session = await store.start_ready(user)
        for login in ("starting", "waiting", "waiting"):
            await store.sessions.set_login(session.id, login)
        await store.sessions.apply(session.id, "oauth_done")
        await store.sessions.apply(session.id, "fail", "its tool said: password hunter2")
        assert await event_types(store.database) == [
            *("session.created", "session.ready", "session.login_waiting"),
            *("session.authenticated", "session.failed"),
        ]
        events = await rows(store.database, tables.webhook_events)
    last = json.loads(events[-1]["body"])
    assert last == {
        "type": "session.failed",
        "timestamp": last["timestamp"],
        "data": {
            "sessionId": session.id,
            "userId": user,
            "provider": "claude",
            "state": "failed",
        },
    }
    assert last["timestamp"] == store.clock().isoformat(timespec="microseconds")[:-6] + "Z"
    assert len({row["id"] for row in events}) == len(events)


@run_async
async def test_rolled_back_change_writes_no_event(store_url: str) -> None:
    async with opened(store_url) as store:
        session = await store.start(await store.new_user())
        before = await event_types(store.database)
        with pytest.raises(RuntimeError):
            async with store.database.writing() as connection:
                locked = await locked_session(connection, session.id)
                await change_session(connection, locked, "terminate", store.clock())
                raise RuntimeError
        with pytest.raises(ValueError, match="may not carry token"):
            async with store.database.writing() as connection:
                await write_event(connection, "credentials.ready", {"token": "x"}, store.clock())
        assert await event_types(store.database) == before


@run_async
async def test_event_is_queued_once_per_subscribed_endpoint(store_url: str) -> None:
    async with opened(store_url) as store:
        webhooks = WebhookQueue(store.database, store.clock)
        for _ in range(2):
            await store.start_ready(await store.new_user())
        both = [
            subscription_of("front"),
            subscription_of("audit", "session.ready"),
            subscription_of("deaf", "none"),
        ]
        queued = await asyncio.gather(*(webhooks.queue(both, 100) for _ in range(4)))
        assert set().union(*queued) == {"front", "audit"}
        found = [(row["event_number"], row["endpoint"]) for row in await deliveries(store.database)]
        assert sorted(found) == [
            *((1, "front"), (2, "audit"), (2, "front")),
            *((3, "front"), (4, "audit"), (4, "front")),
        ]
        assert await webhooks.queue(both, 100) == set()
        # Events without a subscriber are not kept.
        await store.start(await store.new_user())
        assert await webhooks.queue([subscription_of("audit", "session.ready")], 100) == set()
        assert len(await event_types(store.database)) == 4


@run_async
async def test_claimed_delivery_belongs_to_one_sender_until_it_expires(store_url: str) -> None:
    async with opened(store_url) as store:
        webhooks = WebhookQueue(store.database, store.clock)
        await store.start_ready(await store.new_user())
        await webhooks.queue([subscription_of("front"), subscription_of("audit")], 100)
        taken = await asyncio.gather(*(claim(webhooks, store, limit=1) for _ in range(4)))
        first, second = (each for some in taken for each in some)
        assert first.id != second.id
        assert await claim(webhooks, store) == []
        assert len(await claim(webhooks, store, "audit")) == 2

        await webhooks.delivered(first, 204)
        await webhooks.release(second)
        (second,) = await claim(webhooks, store)
        retry_at = store.clock() + timedelta(seconds=5)
        await webhooks.not_delivered(second, 500, "it answered 500", retry_at)
        assert await webhooks.next_due("front") == retry_at
        assert await claim(webhooks, store) == []
        store.clock.pass_seconds(5)
        (again,) = await claim(webhooks, store)
        assert (again.message_id, again.body) == (second.message_id, second.body)
        assert again.attempts == 1

        # Its sender is killed: it is due once the claim is over, and what the sender said late of
        # a failure does not count any more, but what it said of a success does.
        store.clock.pass_seconds(61)
        (other,) = await claim(webhooks, store)
        await webhooks.not_delivered(again, None, "late", None)
        state = {row["id"]: row["state"] for row in await deliveries(store.database)}
        assert (state[first.id], state[other.id]) == ("delivered", "waiting")
        await webhooks.delivered(again, 200)
        await webhooks.not_delivered(other, 500, "late", None)
        kept = next(row for row in await deliveries(store.database) if row["id"] == other.id)
        assert (kept["state"], kept["attempts"], kept["problem"]) == ("delivered", 2, None)


@run_async
async def test_delivery_queue_length_is_limited(store_url: str) -> None:
    async with opened(store_url) as store:
        webhooks = WebhookQueue(store.database, store.clock)
        for _ in range(2):
            await store.start_ready(await store.new_user())
        await webhooks.queue(
            [subscription_of("front"), subscription_of("audit"), subscription_of("old")], 3
        )
        by_endpoint = {
            name: [row for row in await deliveries(store.database) if row["endpoint"] == name]
            for name in ("front", "audit", "old")
        }
        assert [row["state"] for row in by_endpoint["front"]] == ["failed", *3 * ["waiting"]]
        assert by_endpoint["front"][0]["problem"].startswith("3 deliveries waited")

        await webhooks.mark_gone("audit", "0" * 64)
        assert await webhooks.gone() == {"audit": "0" * 64}
        assert await webhooks.fail_unknown(["front", "audit"]) == 3
        await store.start(await store.new_user())
        await webhooks.queue(
            [subscription_of("front"), subscription_of("audit", is_gone=True)], 100
        )
        problems = [row["problem"] for row in await deliveries(store.database)]
        assert (problems.count(GONE), problems.count(UNKNOWN)) == (4, 3)
        await webhooks.unmark_gone("audit")
        assert await webhooks.gone() == {}


@run_async
async def test_prune_keeps_events_with_waiting_deliveries(store_url: str) -> None:
    async with opened(store_url) as store:
        webhooks = WebhookQueue(store.database, store.clock)
        await store.start_ready(await store.new_user())
        await webhooks.queue([subscription_of("front")], 100)
        first, _ = await claim(webhooks, store)
        await webhooks.delivered(first, 200)
        old = store.clock()
        assert await webhooks.prune(old) == 0
        assert await webhooks.prune(old + timedelta(seconds=1)) == 1
        assert [row["state"] for row in await deliveries(store.database)] == ["waiting"]
        assert len(await event_types(store.database)) == 1

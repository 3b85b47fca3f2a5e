"""Webhooks sent to real receivers on loopback, which are slow, broken, gone or hostile."""

from __future__ import annotations

import asyncio
import itertools
import signal
import socket
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from standardwebhooks import Webhook

from polydev.controller.settings import WebhookEndpoint, WebhookSettings
from polydev.controller.store.webhook_log import WebhookLog
from polydev.controller.store.webhook_queue import GONE, Claim, WebhookQueue
from polydev.controller.webhook_urls import checked_url
from polydev.controller.webhooks import http_post
from polydev.controller.webhooks.deliveries import Deliveries
from polydev.controller.webhooks.endpoint_sender import SenderIntervals
from polydev.controller.webhooks.http_post import MOST_ANSWER_BYTES, open_client, post
from polydev.processes import Process, spawn, wait_or_end
from tests.certificates import make_tls
from tests.loopback import Answer, Asked, served
from tests.stores import Store, opened, run_async
from tests.webhooks import (
    ENOUGH_SECONDS,
    event_types,
    states,
    until,
    until_attempted,
    until_states,
)

pytest_plugins = ["tests.databases"]

SECRETS = {name: (f"whsec_{name * 8}",) for name in ("front", "side", "back")}
PACE = SenderIntervals(queue=0.02, look=0.02, ending=0.1)
# A claim has expired by then with default settings.
CLAIM_OVER_SECONDS = 60
AT = datetime(2026, 11, 29, 12, tzinfo=timezone.utc)


def sender(
    store: Store,
    queue: WebhookQueue | None = None,
    pace: SenderIntervals = PACE,
    **urls: str,
) -> Deliveries:
    """Return the sender of a store to endpoints."""
    endpoints = tuple(WebhookEndpoint(name=name, url=url) for name, url in urls.items())
    settings = WebhookSettings(endpoints=endpoints, at_once=3)
    # Longer than settings allow: an attempt that timed out would be made again.
    settings = settings.model_copy(update={"timeout_seconds": ENOUGH_SECONDS})
    webhooks = queue or WebhookQueue(store.database, store.clock)
    return Deliveries(settings, SECRETS, webhooks, leads=lambda: True, clock=store.clock, pace=pace)


@asynccontextmanager
async def sending(deliveries: Deliveries) -> AsyncIterator[None]:
    task = asyncio.create_task(deliveries.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await deliveries.close()
        assert task.cancelled(), task.exception()
        clients = (each._client for each in deliveries._senders.values())
        assert all(client is None or client.is_closed for client in clients)


def verified(asked: Asked, name: str = "front") -> dict[str, Any]:
    """Return a message after a check of its signature."""
    headers = {key.lower(): value for key, value in asked.headers.items()}
    found: dict[str, Any] = Webhook(SECRETS[name][0]).verify(asked.body, headers)
    return found


@run_async
async def test_session_events_are_delivered_signed(store_url: str) -> None:
    with served(lambda _: Answer(204)) as front:
        async with opened(store_url) as store:
            session = await store.start_ready(await store.new_user())
            async with sending(sender(store, front=f"{front.url}/hook?key=1")):
                await until(lambda: len(front.asked) == 2)
                await store.sessions.apply(session.id, "terminate")
                await until_states(store, delivered=3)
            kinds = await event_types(store.database)
    assert {(each.method, each.target) for each in front.asked} == {("POST", "/hook?key=1")}
    assert {each.headers["Content-Type"] for each in front.asked} == {"application/json"}
    messages = [verified(each) for each in front.asked]
    assert sorted(each["type"] for each in messages) == sorted(kinds)
    assert {each["data"]["sessionId"] for each in messages} == {session.id}


@run_async
async def test_failed_delivery_is_retried_until_accepted(
    store_url: str,
) -> None:
    answers = iter([500, 302, 200])
    elsewhere = {"Location": "http://127.0.0.1:9/elsewhere"}
    with served(lambda _: Answer(next(answers), b"no database", elsewhere)) as front:
        async with opened(store_url) as store:
            await store.start(await store.new_user())
            log = WebhookLog(store.database, store.clock)
            async with sending(sender(store, front=front.url)):
                for attempts, problem in (
                    (1, "it answered 500: no database"),
                    (2, "it answered 302, a redirect, which is not followed: no database"),
                    (3, None),
                ):
                    found = await until_attempted(log, attempts)
                    assert found.problem == problem
                    if found.due_at is not None:
                        pause = (found.due_at - store.clock()).total_seconds()
                        assert (5, 300)[attempts - 1] <= pause <= (6, 360)[attempts - 1]
                        store.clock.pass_seconds(pause)
            assert (found.state, found.status, found.due_at) == ("delivered", 200, None)
    assert len({(each.headers["webhook-id"], each.body) for each in front.asked}) == 1
    times = [int(each.headers["webhook-timestamp"]) for each in front.asked]
    assert times == sorted(set(times)), "each attempt is signed as of its own time"


@run_async
async def test_delivery_fails_after_last_attempt(store_url: str) -> None:
    with served(lambda _: Answer(503, headers={"Retry-After": "20000"})) as front:
        async with opened(store_url) as store:
            await store.start(await store.new_user())
            log = WebhookLog(store.database, store.clock)
            async with sending(sender(store, front=front.url)):
                for attempts in range(1, 11):
                    found = await until_attempted(log, attempts)
                    if found.due_at is not None:
                        pause = (found.due_at - store.clock()).total_seconds()
                        assert pause >= 20000, "as long as the receiver asked for"
                        store.clock.pass_seconds(pause)
            assert (found.state, found.ended_at) == ("failed", store.clock())
            backlogs = await log.backlogs(store.clock())
            assert backlogs["front"].failed == 1
            again = await log.resend(found.id)
            assert (again.state, again.attempts, again.ended_at) == ("waiting", 0, None)
    assert len(front.asked) == 10


@run_async
async def test_hung_receiver_delays_no_other_delivery(tmp_path: Path, store_url: str) -> None:
    """One receiver never answers, one accepts connections silently, and one works."""
    let_go = Event()

    def never(_: Asked) -> Answer:
        let_go.wait(ENOUGH_SECONDS)
        return Answer()

    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        served(never) as stuck,
        served(lambda _: Answer()) as front,
    ):
        port = silent.getsockname()[1]
        async with opened(store_url, slots=8) as store:
            back = f"http://127.0.0.1:{port}"
            all_three = sender(store, front=front.url, side=stuck.url, back=back)
            async with sending(all_three):
                for _ in range(4):
                    session = await store.start_ready(await store.new_user())
                    await store.sessions.apply(session.id, "terminate")
                await until_states(store, delivered=12)
                # Deliveries are sent one at a time until the receiver has accepted one.
                assert len(stuck.asked) == 1
                assert await states(store, "side") == {"waiting": 12}
                let_go.set()
                await until_states(store, "side", delivered=12)
            assert await states(store, "back") == {"waiting": 12}


@run_async
async def test_gone_endpoint_gets_nothing_until_resend(
    store_url: str,
) -> None:
    answer = Answer(410)
    with served(lambda _: answer) as front:
        async with opened(store_url) as store:
            await store.start_ready(await store.new_user())
            deliveries = sender(store, front=front.url)
            log = WebhookLog(store.database, store.clock)
            async with sending(deliveries):
                await until_states(store, failed=2)
                session = await store.start(await store.new_user())
                await until_states(store, failed=3)
                assert len(front.asked) == 1
                assert (await log.list())[0].problem == GONE

                # A refused test message changes nothing; an accepted one reopens the endpoint.
                assert not (await deliveries.try_endpoint("front")).is_taken
                assert await log.gone()
                answer = Answer(200, b"thanks")
                reply = await deliveries.try_endpoint("front")
                assert (reply.status, reply.said) == (200, "thanks")
                assert verified(front.asked[-1])["type"] == "webhook.test"
                assert not await log.gone()
                await store.sessions.apply(session.id, "terminate")
                await until(lambda: len(front.asked) == 4)

                again = (await log.list(state="failed"))[0]
                await log.resend(again.id)
                deliveries.sender("front").resume()

                await until_states(store, delivered=2, failed=2)
            assert front.asked[-1].headers["webhook-id"] == again.message_id


@run_async
async def test_gone_endpoint_gets_webhooks_again_at_a_new_url(store_url: str) -> None:
    with served(lambda asked: Answer(410 if asked.path == "/old" else 200)) as front:
        async with opened(store_url) as store:
            session = await store.start(await store.new_user())
            async with sending(sender(store, front=f"{front.url}/old")):
                await until_states(store, failed=1)
            await store.sessions.apply(session.id, "terminate")
            async with sending(sender(store, front=f"{front.url}/new")):
                await until_states(store, delivered=1, failed=1)


class ClaimCounter(WebhookQueue):
    """A queue that notes how many deliveries each claim may take."""

    def __init__(self, *words: Any) -> None:
        super().__init__(*words)
        self.limits: list[int] = []

    async def claim(self, endpoint: str, limit: int, until: datetime) -> list[Claim]:
        self.limits.append(limit)
        return await super().claim(endpoint, limit, until)


@run_async
async def test_endpoint_that_refused_gets_one_delivery_at_a_time(store_url: str) -> None:
    answers = iter([Answer(200), Answer(500)])
    with served(lambda _: next(answers)) as front:
        async with opened(store_url) as store:
            session = await store.start(await store.new_user())
            queue = ClaimCounter(store.database, store.clock)
            async with sending(sender(store, queue, front=front.url)):
                await until_states(store, delivered=1)
                await until(lambda: queue.limits[-1] == 3)
                await store.sessions.apply(session.id, "terminate")
                log = WebhookLog(store.database, store.clock)

                async def is_refused() -> bool:
                    return any(each.status == 500 for each in await log.list())

                await until(is_refused)
                queue.limits.clear()
                await until(lambda: queue.limits)
                assert set(queue.limits) == {1}


class FailingOnceQueue(WebhookQueue):
    """Its database fails at the first question of each kind."""

    def __init__(self, *words: Any) -> None:
        super().__init__(*words)
        self.failed: set[str] = set()

    def _fail_once(self, what: str) -> None:
        if what not in self.failed:
            self.failed.add(what)
            raise OperationalError("SELECT 1", {}, OSError("no database"))

    async def has_new(self) -> bool:
        self._fail_once("has_new")
        return await super().has_new()

    async def claim(self, endpoint: str, limit: int, until: datetime) -> list[Claim]:
        self._fail_once("claim")
        return await super().claim(endpoint, limit, until)

    async def prune(self, before: datetime) -> int:
        self._fail_once("prune")
        return await super().prune(before)


@run_async
async def test_database_errors_end_no_sender(store_url: str) -> None:
    with served(lambda _: Answer()) as front:
        async with opened(store_url) as store:
            await store.start(await store.new_user())
            queue = FailingOnceQueue(store.database, store.clock)
            async with sending(sender(store, queue, front=front.url)):
                await until_states(store, delivered=1)
    assert queue.failed == {"has_new", "claim", "prune"}


@run_async
async def test_endpoint_can_ask_for_a_pause_of_at_most_one_hour(store_url: str) -> None:
    """The delivery itself waits longer, other ones do not."""
    answers = iter([Answer(503, headers={"Retry-After": "80000"}), Answer(200)])
    with served(lambda _: next(answers)) as front:
        async with opened(store_url) as store:
            await store.start_ready(await store.new_user())
            async with sending(sender(store, front=front.url)):
                log = WebhookLog(store.database, store.clock)

                async def is_refused() -> bool:
                    return any(each.attempts == 1 for each in await log.list())

                await until(is_refused)
                store.clock.pass_seconds(3601)
                await until_states(store, delivered=1, waiting=1)


@run_async
async def test_endpoint_that_asked_for_a_pause_gets_nothing_before_its_end(store_url: str) -> None:
    answers = iter([Answer(429, headers={"Retry-After": "600"}), Answer(200), Answer(200)])
    looks = 0
    with served(lambda _: next(answers)) as front:
        async with opened(store_url) as store:

            def clock() -> datetime:
                nonlocal looks
                looks += 1
                return store.clock()

            await store.start_ready(await store.new_user())
            queue = ClaimCounter(store.database, store.clock)
            settings = WebhookSettings(
                endpoints=(WebhookEndpoint(name="front", url=front.url),), at_once=3
            )
            deliveries = Deliveries(
                settings, SECRETS, queue, leads=lambda: True, clock=clock, pace=PACE
            )
            log = WebhookLog(store.database, store.clock)

            async def is_refused() -> bool:
                return any(each.attempts == 1 for each in await log.list())

            async with sending(deliveries):
                await until(is_refused)
                store.clock.pass_seconds(599)
                claims, seen = len(queue.limits), looks
                await until(lambda: looks > seen + 3)
                assert len(queue.limits) == claims
                store.clock.pass_seconds(2)
                await until_states(store, delivered=2)
    assert len(front.asked) == 3


@run_async
async def test_controller_handover_loses_no_delivery(store_url: str) -> None:
    """The ending process releases its unfinished delivery, and the next one sends it."""
    let_go = Event()

    def held(_: Asked) -> Answer:
        let_go.wait(ENOUGH_SECONDS)
        return Answer()

    with served(held) as front:
        async with opened(store_url) as store:
            await store.start_ready(await store.new_user())
            async with sending(sender(store, front=front.url)):
                await until(lambda: len(front.asked) == 1)
            assert await states(store) == {"waiting": 2}
            let_go.set()
            async with sending(sender(store, front=front.url)):
                await until_states(store, delivered=2)
    counted = Counter(each.headers["webhook-id"] for each in front.asked)
    assert sorted(counted.values()) == [1, 2], "only what was under way is sent twice"


@run_async
async def test_ending_sender_waits_for_the_answer_under_way(store_url: str) -> None:
    let_go = Event()

    def held(_: Asked) -> Answer:
        let_go.wait(ENOUGH_SECONDS)
        return Answer()

    pace = replace(PACE, ending=ENOUGH_SECONDS)
    with served(held) as front:
        async with opened(store_url) as store:
            await store.start(await store.new_user())
            deliveries = sender(store, pace=pace, front=front.url)
            task = asyncio.create_task(deliveries.run())
            await until(lambda: len(front.asked) == 1)
            task.cancel()
            for _ in range(10):
                await asyncio.sleep(0)
            let_go.set()
            await asyncio.gather(task, return_exceptions=True)
            await deliveries.close()
            assert await states(store) == {"delivered": 1}


@run_async
async def test_killed_sender_repeats_only_the_delivery_under_way(
    store_url: str,
) -> None:
    """The process is killed while a receiver has a message and has not answered."""
    let_go = Event()

    def held(_: Asked) -> Answer:
        let_go.wait(ENOUGH_SECONDS)
        return Answer()

    def started(ahead_seconds: float) -> Process:
        words = [store_url, front.url, str(ahead_seconds)]
        return spawn([sys.executable, "-m", "tests.webhook_sender", *words])

    with served(held) as front:
        async with opened(store_url) as store:
            for _ in range(2):
                await store.start_ready(await store.new_user())
            first = started(0)
            await until(lambda: front.asked or first.poll() is not None)
            first.kill()
            wait_or_end(first, ENOUGH_SECONDS)
            assert first.returncode == -signal.SIGKILL
            assert await states(store) == {"waiting": 4}
            let_go.set()
            second = started(CLAIM_OVER_SECONDS)
            try:
                await until_states(store, delivered=4)
            finally:
                second.terminate()
                wait_or_end(second, ENOUGH_SECONDS)
    counted = Counter(each.headers["webhook-id"] for each in front.asked)
    assert sorted(counted.values()) == [1, 1, 1, 2]


@run_async
async def test_two_senders_send_each_delivery_once(store_url: str) -> None:
    with served(lambda _: Answer()) as front:
        async with opened(store_url, slots=8) as store:
            for _ in range(6):
                await store.start_ready(await store.new_user())
            one, other = (sender(store, front=front.url) for _ in range(2))
            async with sending(one), sending(other):
                await until_states(store, delivered=12)
    assert len({each.headers["webhook-id"] for each in front.asked}) == len(front.asked) == 12


def _always(answer: Answer, _: Asked) -> Answer:
    return answer


@run_async
async def test_endless_answer_counts_by_its_status(tmp_path: Path) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in itertools.count():
            sent += 4096
            yield b"x" * 4096

    async with open_client(1, ENOUGH_SECONDS) as client:
        for status in (200, 500):
            answer = Answer(status, parts=endless())
            with served(partial(_always, answer)) as front:
                reply = await post(client, front.url, {}, "{}", ENOUGH_SECONDS, AT)
            assert (reply.status, reply.is_taken) == (status, status == 200)
            assert len(reply.said) <= 200
    # More than what is read, since sockets hold some of it, and no more than they can hold.
    assert sent < 1000 * MOST_ANSWER_BYTES


@run_async
async def test_answer_counts_by_its_status_if_its_text_does_not_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else an accepted message would be sent again."""
    monkeypatch.setattr(http_post, "BODY_SECONDS", 0.2)
    over = Event()

    def stalled() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart"
        over.wait(ENOUGH_SECONDS)

    def broken() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart"

    async with open_client(1, ENOUGH_SECONDS) as client:
        for answer in (Answer(raw=stalled()), Answer(raw=broken())):
            with served(partial(_always, answer)) as front:
                reply = await post(client, front.url, {}, "{}", ENOUGH_SECONDS, AT)
                over.set()
            assert (reply.status, reply.said, reply.is_taken) == (200, "", True)


@run_async
async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(lambda _: Answer(502)) as proxy, served(lambda _: Answer()) as front:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("NO_PROXY", "")
        async with open_client(1, ENOUGH_SECONDS) as client:
            reply = await post(client, front.url, {}, "{}", ENOUGH_SECONDS, AT)
    assert (reply.status, proxy.asked) == (200, [])


@run_async
async def test_delivery_attempt_has_one_time_limit(tmp_path: Path) -> None:
    """One receiver is silent, one sends a byte now and then."""
    over = Event()

    def drips() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n"
        for number in itertools.count():
            if over.wait(0.05):
                return
            yield f"X-{number}: 1\r\n".encode()

    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        served(lambda _: Answer(raw=drips())) as slow,
    ):
        async with open_client(1, ENOUGH_SECONDS) as client:
            for url in (slow.url, f"http://127.0.0.1:{silent.getsockname()[1]}"):
                reply = await post(client, url, {}, "{}", 0.4, AT)
                assert reply.problem == "no answer within 0.4 s"
        over.set()


@run_async
async def test_connection_errors_are_reported_without_url(tmp_path: Path) -> None:
    tls = make_tls(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tls.certificate, tls.key)
    with (
        socket.socket() as unused,
        served(lambda _: Answer(), tls=server) as strange,
        served(lambda _: Answer(raw=[])) as silent,
        served(lambda _: Answer(raw=[b"SSH-2.0-x\r\n"])) as other,
        served(lambda _: Answer()) as plain,
    ):
        unused.bind(("127.0.0.1", 0))  # nobody listens, and no other process gets the port
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}/secret"
        expected = {
            "http://no-such-host.invalid/secret": "its host name cannot be resolved: ",
            closed: "cannot connect: nothing listens at its address",
            f"{strange.url}/secret": "its certificate is not accepted: ",
            f"{plain.url.replace('http', 'https')}/secret": "TLS failed: ",
            f"{silent.url}/secret": "it closed the connection without an answer",
            f"{other.url}/secret": "it closed the connection without an answer, or sent no HTTP",
        }
        async with open_client(1, ENOUGH_SECONDS) as client:
            for url, words in expected.items():
                reply = await post(client, url, {}, "{}", ENOUGH_SECONDS, AT)
                assert reply.problem is not None
                assert reply.problem.startswith(words), reply.problem
                assert "secret" not in reply.problem


@run_async
async def test_retry_after_may_be_seconds_or_a_time() -> None:
    for retry_after, seconds in {
        "600": 600,
        "Sun, 29 Nov 2026 12:10:00 GMT": 600,
        "Sun, 29 Nov 2026 11:50:00 GMT": 0,
    }.items():
        answer = Answer(503, headers={"Retry-After": retry_after})
        with served(partial(_always, answer)) as front:
            async with open_client(1, ENOUGH_SECONDS) as client:
                reply = await post(client, front.url, {}, "{}", ENOUGH_SECONDS, AT)
        assert reply.retry_after_seconds == seconds


@run_async
async def test_invalid_retry_after_is_ignored() -> None:
    for retry_after in (
        "Mon, 1 Jan 99999999999 00:00:00 GMT",
        "Mon, 1 Jan 2026 00:00:00 +99999999999999",
        "soon",
    ):
        answer = Answer(503, headers={"Retry-After": retry_after})
        with served(partial(_always, answer)) as front:
            async with open_client(1, 20) as client:
                reply = await post(client, front.url, {}, "{}", 20, AT)
        assert (reply.status, reply.retry_after_seconds) == (503, None)


@run_async
async def test_invalid_host_name_is_a_failed_attempt() -> None:
    """The host name is decoded only when something is sent."""
    async with open_client(1, 20) as client:
        reply = await post(client, checked_url("https://xn--a.example/"), {}, "{}", 20, AT)
    assert (reply.status, reply.said) == (None, "its host name is not valid")

"""The relay with real sockets: the whole application, real clients, VMs that a test controls."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import struct
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import AsyncExitStack, suppress
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import httpx
import psutil
import pytest
import uvloop
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs
from websockets.exceptions import ConnectionClosed

from polydev.controller import app_services
from polydev.controller.api import novnc
from polydev.controller.app import create_app
from polydev.controller.auth.revocation_watch import NOT_OPERATOR, TokenWatch
from polydev.controller.entities import Session, now
from polydev.controller.machines import vm_waker
from polydev.controller.relay import viewers
from polydev.controller.relay.keepalive import KeepaliveTimer
from polydev.controller.relay.limits import MOST_VIEWERS
from polydev.controller.relay.websocket_takeover import RelayProtocol, UpgradedConnection
from polydev.controller.store.sessions import Sessions
from polydev.controller.store.vms import Vms
from tests.api import JWT_SECRET, token_of
from tests.certificates import Tls, make_tls
from tests.driving import Clock, until
from tests.relays import (
    HEIGHT,
    PATIENCE_SECONDS,
    WIDTH,
    ByHand,
    Screens,
    closing_of,
    raw_viewer,
    rfb_screen,
    screens,
    serving,
)
from tests.viewer import rfb_viewer
from tests.vms import RFB_GREETING

MEBIBYTE = 1 << 20
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
BINARY, CLOSE, PING, PONG = 2, 8, 9, 10
GIGABYTE = 1 << 30
# Memory that Python itself may take and give back meanwhile.
SOME_BYTES = 48 * MEBIBYTE

Scenario = Callable[[Screens], Awaitable[None]]
Run = Callable[[Scenario], None]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=[*LOOPS, "uvloop with TLS"])
def run(request: pytest.FixtureRequest, tmp_path: Path, tls: Tls) -> Run:
    """Play a scenario on each of the event loops, and under TLS on the one that hosts have.

    Nothing outlives it.
    """
    loop_name, _, with_tls = request.param.partition(" ")

    async def play(scenario: Scenario) -> None:
        before = connections()
        async with screens(tmp_path, tls=tls if with_tls else None) as made:
            await scenario(made)

        async def nothing_left() -> bool:
            return not connections() - before

        await until(nothing_left, "the end of all connections")

    def run(scenario: Scenario) -> None:
        loop = LOOPS[loop_name]()
        try:
            loop.run_until_complete(play(scenario))
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()

    return run


def connections() -> set[str]:
    """This process's sockets and pipes."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed just now
            found.add(str(path.readlink()))
    return {each for each in found if each.startswith(("socket:", "pipe:"))}


class Vm:
    """One connection to a VM's screen, handled by the test itself."""

    def __init__(self) -> None:
        self.connected = asyncio.Event()
        self.released = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.connected.set()
        await self.released.wait()

    async def ended(self) -> bool:
        """Wait for the relay to close the connection; return whether it did."""
        try:
            return not await self.reader.read(1)
        except ConnectionError:
            return True
        finally:
            self.released.set()


def test_bytes_are_relayed_both_ways(run: Run) -> None:
    async def scenario(made: Screens) -> None:
        session = await made.session()
        pieces = [os.urandom(size) for size in (1, 125, 126, 70_000, MEBIBYTE, 300)]
        async with made.connect(session.id) as viewer:
            assert await viewer.recv() == RFB_GREETING
            for piece in pieces:
                await viewer.send(piece)
                assert await exactly(viewer, len(piece)) == piece
            await viewer.send(iter(pieces[1:4]))  # one message in fragments
            assert await exactly(viewer, 70_251) == b"".join(pieces[1:4])

    run(scenario)


async def exactly(viewer: Any, count: int) -> bytes:
    got = b""
    while len(got) < count:
        got += await viewer.recv()
    return got


def test_burst_larger_than_buffers_arrives_complete(run: Run) -> None:
    burst = os.urandom(24 * MEBIBYTE)

    async def screen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(burst)
        await writer.drain()

    async def scenario(made: Screens) -> None:
        session = await made.session(screen)
        async with made.connect(session.id) as viewer:
            assert await exactly(viewer, len(burst)) == burst
            # The viewer gets the VM's last bytes before the close.
            assert (await closing_of(viewer))[0] == 1011

    run(scenario)


@pytest.mark.parametrize(
    ("offered", "agreed"), [(["binary"], "binary"), (["base64", "binary"], "binary"), ([], None)]
)
def test_subprotocol_is_echoed_and_compression_refused(
    run: Run, offered: list[str], agreed: str | None
) -> None:
    async def scenario(made: Screens) -> None:
        session = await made.session()
        options: dict[str, Any] = {"subprotocols": offered or None, "compression": "deflate"}
        async with made.connect(session.id, **options) as viewer:
            assert viewer.subprotocol == agreed
            assert viewer.response is not None
            assert "Sec-WebSocket-Extensions" not in viewer.response.headers
            assert await viewer.recv() == RFB_GREETING

    run(scenario)


def test_refused_viewers_get_close_code_and_reason(run: Run) -> None:
    async def scenario(made: Screens) -> None:
        session = await made.session()
        unknown = "5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01"
        made.tokens["a bad token"] = "pdt_" + "x" * 43
        assert (await made.closing(session.id, None))[0] == 4401
        assert (await made.closing(session.id, "a bad token"))[0] == 4401
        assert await made.closing(session.id, "other user") == (
            4403,
            "access denied: the session belongs to another user",
        )
        assert (await made.closing(unknown))[0] == 4404
        assert await made.closing("nonsense") == (4404, "this is not the id of a session")
        booting = await made.booting()
        code, reason = await made.closing(booting.id)
        assert code == 4425
        assert "not ready" in reason
        await made.services.sessions.apply(booting.id, "fail", "no network")
        assert await made.closing(booting.id) == (
            4410,
            "the session is over (failed): no network",
        )

    run(scenario)


def test_operators_and_query_tokens_may_view(run: Run) -> None:
    async def scenario(made: Screens) -> None:
        session = await made.session()
        async with made.connect(session.id, "operator") as viewer:
            assert await viewer.recv() == RFB_GREETING
        made.tokens["user in query"] = made.tokens["user"]
        url = f"{made.url(session.id)}?access_token={made.tokens['user']}"
        # A proxy in front may ask for a password.
        for headers in ({}, {"Authorization": "Basic dTpw"}):
            given = {"uri": url, "additional_headers": headers}
            async with made.connect(session.id, None, **given) as viewer:
                assert await viewer.recv() == RFB_GREETING

    run(scenario)


def test_silent_screen_closes_the_viewer(run: Run) -> None:
    async def scenario(made: Screens) -> None:
        session = await made.session()
        made.vms[session.id].hang_up()
        assert await made.closing(session.id) == (1011, "the VM's screen does not answer")

    run(scenario)


def test_viewer_waits_until_paused_vm_is_awake(run: Run) -> None:
    async def scenario(made: Screens) -> None:
        vms = made.services.vms
        screen = Vm()
        session = await made.session(screen)
        assert await vms.pause(await vms.get(session.vm_id))
        viewing = asyncio.ensure_future(made.connect(session.id).__aenter__())

        async def wanted() -> bool:
            vm = await vms.get(session.vm_id)
            return bool(vm.used_at and vm.paused_at and vm.used_at >= vm.paused_at)

        await until(wanted, "the wish to wake it")
        viewer = await viewing
        assert not screen.connected.is_set()
        await vms.woken(session.vm_id)
        await screen.connected.wait()
        screen.writer.write(RFB_GREETING)
        assert await viewer.recv() == RFB_GREETING
        await viewer.close()
        screen.released.set()

    run(scenario)


def test_viewer_is_closed_if_paused_vm_does_not_wake(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vm_waker, "WAKE_SECONDS", 0.05)

    async def scenario(made: Screens) -> None:
        vms = made.services.vms
        session = await made.session()
        assert await vms.pause(await vms.get(session.vm_id))
        words = "the paused VM could not be resumed; try again"
        assert await made.closing(session.id) == (1013, words)
        # A session that ends meanwhile is reported as ended.
        monkeypatch.setattr(vm_waker, "WAKE_SECONDS", PATIENCE_SECONDS)
        closing = asyncio.ensure_future(made.closing(session.id))
        await made.services.sessions.apply(session.id, "terminate")
        code, _ = await closing
        assert code == 4410

    run(scenario)


def test_number_of_viewers_per_session_is_limited(run: Run) -> None:
    async def scenario(made: Screens) -> None:
        session = await made.session()
        viewers = [await made.connect(session.id) for _ in range(MOST_VIEWERS)]
        for viewer in viewers:
            assert await viewer.recv() == RFB_GREETING
        code, reason = await made.closing(session.id)
        assert (code, reason) == (1013, "this session has too many viewers already")
        await viewers[0].close()
        await until(partial(has_metric, made, f"viewers {MOST_VIEWERS - 1}.0"), "a free place")
        async with made.connect(session.id) as viewer:
            assert await viewer.recv() == RFB_GREETING
        for viewer in viewers:
            await viewer.close()

    run(scenario)


async def has_metric(made: Screens, line: str) -> bool:
    return f"polydev_relay_{line}" in made.services.metrics.text().decode()


def test_session_end_closes_viewers_at_once(run: Run) -> None:
    async def scenario(made: Screens) -> None:
        session, other = await made.session(), await made.session()
        async with made.connect(session.id) as viewer, made.connect(other.id) as unconcerned:
            assert await viewer.recv() == RFB_GREETING
            assert await unconcerned.recv() == RFB_GREETING
            await made.services.sessions.apply(session.id, "terminate", "its user ended it")
            made.services.event_notifier.notify()
            told = await closing_of(viewer)
            assert told == (4410, "the session is over (terminated): its user ended it")
            await unconcerned.send(b"still here")
            assert await unconcerned.recv() == b"still here"

    run(scenario)


def test_session_end_without_notification_closes_viewers(run: Run) -> None:
    async def scenario(made: Screens) -> None:
        session = await made.session()
        async with made.connect(session.id) as viewer:
            await made.services.sessions.apply(session.id, "expire", "nobody looked")
            assert (await closing_of(viewer))[0] == 4410

    run(scenario)


def test_expired_token_closes_viewer(run: Run) -> None:
    async def scenario(made: Screens) -> None:
        session = await made.session()
        for seconds in (1, 4, 16, 64):  # a busy machine needs longer to let a viewer in
            soon = now() + timedelta(seconds=seconds)
            _, made.tokens["for a while"] = await made.services.tokens.create(
                made.users["user"], "for a while", soon
            )
            async with made.connect(session.id, "for a while") as viewer:
                with suppress(ConnectionClosed):
                    assert await viewer.recv() == RFB_GREETING
                    assert await closing_of(viewer) == (4401, "the token has expired")
                    return
        pytest.fail("no viewer was let in")

    run(scenario)


def test_revoked_token_closes_viewer(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_services, "TokenWatch", partial(TokenWatch, check_seconds=0.05))

    async def scenario(made: Screens) -> None:
        session = await made.session()
        async with made.connect(session.id) as viewer, made.connect(session.id, "operator") as on:
            for each in (viewer, on):
                assert await each.recv() == RFB_GREETING
            (token,) = await made.services.tokens.list(made.users["user"])
            await made.services.tokens.revoke(token.id)
            assert await closing_of(viewer) == (4401, "the token was revoked")
            await on.send(b"still here")
            assert await on.recv() == b"still here"

    run(scenario)


def test_lost_operator_role_closes_viewers_of_other_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_services, "TokenWatch", partial(TokenWatch, check_seconds=0.05))

    async def scenario(made: Screens) -> None:
        session = await made.session()
        own = await made.session(user="operator")
        made.tokens["JWT"] = token_of(made.users["operator"])
        url = f"http://127.0.0.1:{made.port}"
        async with AsyncExitStack() as open_ones:
            viewers = [
                await open_ones.enter_async_context(made.connect(session.id, caller))
                for caller in ("operator", "JWT")
            ]
            kept = await open_ones.enter_async_context(made.connect(own.id, "JWT"))
            for each in (*viewers, kept):
                assert await each.recv() == RFB_GREETING
            http = await open_ones.enter_async_context(
                httpx.AsyncClient(base_url=url, trust_env=False, timeout=PATIENCE_SECONDS)
            )
            paths = (
                f"/api/auth/session/{session.id}/events",
                f"/api/vm/{session.vm_id}/console?follow=true",
            )
            streams = []
            for path in paths:
                for caller in ("operator", "JWT"):
                    token = {"Authorization": f"Bearer {made.tokens[caller]}"}
                    asked = http.stream("GET", path, headers=token)
                    streams.append(await open_ones.enter_async_context(asked))
            assert [each.status_code for each in streams] == [200] * 4
            await made.services.users.set_role(made.users["operator"], "user")
            for each in viewers:
                assert await closing_of(each) == (4403, NOT_OPERATOR)
            ends = [(await each.aread()).decode() for each in streams]
            assert all("event: over" in text and NOT_OPERATOR in text for text in ends[:2])
            await kept.send(b"still here")
            assert await kept.recv() == b"still here"

    play(tmp_path, scenario, jwt_secret=JWT_SECRET)


def test_vm_end_after_session_end_is_reported_as_session_end(run: Run) -> None:
    async def scenario(made: Screens) -> None:
        session = await made.session()
        async with made.connect(session.id) as viewer:
            assert await viewer.recv() == RFB_GREETING
            await made.services.sessions.apply(session.id, "terminate")
            made.vms[session.id].end()
            assert await closing_of(viewer) == (4410, "the session is over (terminated)")

    run(scenario)


def test_lost_vm_connection_closes_viewer_and_reconnect_works(run: Run) -> None:
    async def scenario(made: Screens) -> None:
        session = await made.session()
        vm = made.vms[session.id]
        async with made.connect(session.id) as viewer:
            assert await viewer.recv() == RFB_GREETING
            vm.hang_up()  # its connections are reset
            assert await closing_of(viewer) == (
                1011,
                "the VM ended the connection to its screen",
            )
        await vm.listen(5901, vm.serve_rfb)
        async with made.connect(session.id) as viewer:
            assert await viewer.recv() == RFB_GREETING

    run(scenario)


def test_restart_closes_viewers_and_reconnect_finds_same_vm(run: Run) -> None:
    async def scenario(made: Screens) -> None:
        session = await made.session()
        async with made.connect(session.id) as viewer:
            assert await viewer.recv() == RFB_GREETING
            made.server.should_exit = True
            assert await closing_of(viewer) == (1001, "the service restarts; connect again")
        app = create_app(made.services.settings, made.host.hypervisor)
        async with serving(app, made.tls) as (_, port):
            made.port = port
            async with made.connect(session.id) as viewer:
                assert await viewer.recv() == RFB_GREETING

    run(scenario)


@pytest.mark.parametrize("payload", [b"", struct.pack(">H", 1000), struct.pack(">H", 1001)])
def test_viewer_close_is_answered_and_vm_connection_closed(run: Run, payload: bytes) -> None:
    vm = Vm()

    async def scenario(made: Screens) -> None:
        session = await made.session(vm)
        with capture_logs() as logs:
            async with raw_viewer(made, session.id) as viewer:
                await vm.connected.wait()
                viewer.send(CLOSE, payload)
                kind, said = await viewer.frame()
                assert kind == CLOSE
                assert said == struct.pack(">H", 1000) + b"closed by the viewer"
                assert await viewer.reader.read() == b""
            assert await vm.ended()
            await until_logged(logs, "viewer_closed")
        assert logged(logs, "viewer_closed")["code"] == 1000

    run(scenario)


def test_vanished_viewer_closes_vm_connection(run: Run) -> None:
    vm = Vm()

    async def scenario(made: Screens) -> None:
        session = await made.session(vm)
        with capture_logs() as logs:
            async with raw_viewer(made, session.id):
                await vm.connected.wait()
            assert await vm.ended()
            await until_logged(logs, "viewer_closed")
        assert logged(logs, "viewer_closed")["cause"] == "viewer-vanished"

    run(scenario)


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (b"\x82\x03abc", 1002),
        (b"\x81\x81\0\0\0\0x", 1003),
        (b"\x82\xff" + (MEBIBYTE + 1).to_bytes(8, "big") + bytes(4), 1009),
    ],
    ids=["not-masked", "text", "too-big"],
)
def test_protocol_errors_close_viewer_with_code(run: Run, frames: bytes, code: int) -> None:
    async def scenario(made: Screens) -> None:
        session = await made.session()
        async with raw_viewer(made, session.id) as viewer:
            assert await viewer.frame() == (BINARY, RFB_GREETING)
            viewer.writer.write(frames)
            kind, said = await viewer.frame()
            assert (kind, int.from_bytes(said[:2], "big")) == (CLOSE, code)
            assert said[2:]

    run(scenario)


EMPTY = b"\x82\x80\0\0\0\0"
EMPTY_PING = b"\x89\x80\0\0\0\0"


@pytest.mark.parametrize(
    "frame", [EMPTY, EMPTY_PING, b"\x8a\x80\0\0\0\0"], ids=["data", "ping", "pong"]
)
def test_viewer_that_floods_frames_is_closed(run: Run, frame: bytes) -> None:
    async def scenario(made: Screens) -> None:
        session = await made.session()
        async with raw_viewer(made, session.id) as viewer:
            assert await viewer.frame() == (BINARY, RFB_GREETING)
            viewer.writer.write(frame * 50_000)
            kind = said = None
            while kind != CLOSE:
                kind, said = await viewer.frame()
            assert said
            assert int.from_bytes(said[:2], "big") == 1008
        # The limit is per user, not per connection; other users have their own.
        async with raw_viewer(made, session.id) as viewer:
            viewer.writer.write(frame + EMPTY_PING)
            while (kind := (await viewer.frame())[0]) not in (CLOSE, PONG):
                pass
        async with made.connect(session.id, "operator") as other:
            assert await other.recv() == RFB_GREETING
            await other.send(b"still here")
            assert await other.recv() == b"still here"

    run(scenario)


def test_frames_before_admission_are_not_read(run: Run) -> None:
    async def scenario(made: Screens) -> None:
        session = await made.session()
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            async with raw_viewer(made, session.id, after=EMPTY * 100_000) as viewer:
                while (await viewer.frame())[0] != CLOSE:
                    pass
        async with made.connect(session.id, "operator") as other:
            assert await other.recv() == RFB_GREETING

    run(scenario)


def test_time_limit_of_the_handshake_ends_with_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would disconnect every viewer."""
    limits: list[asyncio.TimerHandle | None] = []
    take_over = RelayProtocol.take_over

    async def noted(protocol: RelayProtocol) -> UpgradedConnection:
        limits.append(protocol._handshake)
        return await take_over(protocol)

    monkeypatch.setattr(RelayProtocol, "take_over", noted)

    async def scenario(made: Screens) -> None:
        session = await made.session()
        async with made.connect(session.id) as viewer:
            assert await viewer.recv() == RFB_GREETING
            (limit,) = limits
            assert limit is not None
            assert limit.cancelled()

    run(scenario)


def test_slow_viewer_applies_backpressure_to_the_vm(run: Run) -> None:
    offered = 0
    chunk = os.urandom(MEBIBYTE)

    async def screen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal offered
        while offered < GIGABYTE:
            writer.write(chunk)
            await writer.drain()
            offered += len(chunk)

    async def scenario(made: Screens) -> None:
        session = await made.session(screen)
        before = psutil.Process().memory_info().rss
        async with raw_viewer(made, session.id) as viewer:
            await until(partial(is_unchanged, lambda: offered), "an end of sending")
            assert offered < GIGABYTE // 4
            assert psutil.Process().memory_info().rss - before < SOME_BYTES
            taken = 0
            while taken < GIGABYTE:
                kind, data = await viewer.frame()
                if kind == PING:  # on a busy machine this takes longer than its pause
                    viewer.send(PONG, data)
                    continue
                assert kind == BINARY
                assert data[:64] == (chunk + chunk)[taken % MEBIBYTE :][:64]
                taken += len(data)
            assert taken == GIGABYTE
            assert psutil.Process().memory_info().rss - before < SOME_BYTES

    run(scenario)


async def is_unchanged(figure: Callable[[], int]) -> bool:
    before = figure()
    await asyncio.sleep(0.2)
    return figure() == before > 0


def test_slow_vm_applies_backpressure_to_the_viewer(run: Run) -> None:
    vm = Vm()
    chunk = os.urandom(MEBIBYTE)
    sent = 0

    async def send_on(viewer: Any) -> None:
        nonlocal sent
        for _ in range(128):
            await viewer.send(chunk)
            sent += len(chunk)

    async def scenario(made: Screens) -> None:
        session = await made.session(vm)
        before = psutil.Process().memory_info().rss
        async with made.connect(session.id) as viewer:
            sending = asyncio.create_task(send_on(viewer))
            await vm.connected.wait()
            await until(partial(is_unchanged, lambda: sent), "an end of sending")
            assert sent < 128 * MEBIBYTE
            assert psutil.Process().memory_info().rss - before < SOME_BYTES
            digest = hashlib.sha256()
            for _ in range(128):
                digest.update(await vm.reader.readexactly(MEBIBYTE))
            await sending
            assert digest.digest() == hashlib.sha256(chunk * 128).digest()
            vm.released.set()

    run(scenario)


def test_pongs_do_not_split_frames_of_slow_viewer(run: Run) -> None:
    picture = os.urandom(32 * MEBIBYTE)

    async def screen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(picture)
        await writer.drain()
        await reader.read()

    async def scenario(made: Screens) -> None:
        session = await made.session(screen)
        async with raw_viewer(made, session.id) as viewer:
            pongs = size = 0
            parts = []
            for number in range(2000):
                viewer.send(PING, str(number).encode())
            while size < len(picture) or not pongs:
                kind, data = await viewer.frame()
                if kind == PONG:
                    pongs += 1
                    viewer.send(PING, b"again")
                else:
                    parts.append(data)
                    size += len(data)
            assert b"".join(parts) == picture

    run(scenario)


@pytest.fixture
def quick_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not so quick that a busy machine makes a viewer late.
    monkeypatch.setattr(novnc, "KeepaliveTimer", partial(KeepaliveTimer, 0.2))


@pytest.mark.usefixtures("quick_pings")
def test_viewer_without_pongs_is_closed(run: Run) -> None:
    vm = Vm()

    async def scenario(made: Screens) -> None:
        session = await made.session(vm)
        async with raw_viewer(made, session.id) as viewer:
            await vm.connected.wait()
            assert await viewer.frame() == (PING, b"")
            kind, said = await viewer.frame()
            assert kind == CLOSE
            assert said == struct.pack(">H", 1011) + b"the viewer answered no ping"
        assert await vm.ended()

    run(scenario)


def test_viewers_that_answer_pings_or_read_slowly_stay(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    timer = ByHand()
    monkeypatch.setattr(novnc, "KeepaliveTimer", lambda: timer)

    async def screen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(48 * MEBIBYTE))
        await reader.read()

    async def scenario(made: Screens) -> None:
        still, moving = await made.session(), await made.session(screen)
        async with (
            raw_viewer(made, still.id) as answering,
            raw_viewer(made, moving.id) as slow,
        ):
            assert await answering.frame() == (BINARY, RFB_GREETING)
            for _ in range(8):
                await until(partial(a_viewer_waits, made), "a viewer that takes no more bytes")
                timer.beat()
                assert await answering.frame() == (PING, b"")
                answering.send(PONG, b"")
                answering.send(BINARY, b"hello")  # its echo comes when the pong was read
                assert await answering.frame() == (BINARY, b"hello")
                # Read a little of a frame for each ping, which is sent after the frame.
                await slow.reader.readexactly(4 * MEBIBYTE)

    run(scenario)


async def a_viewer_waits(made: Screens) -> bool:
    return any(viewer.waits for viewer in made.services.viewers.admitted())


async def until_heartbeat(made: Screens, session: Session, at: datetime) -> None:
    """Wait for the session's heartbeat of that time."""

    async def look() -> bool:
        return (await made.services.sessions.get(session.id)).heartbeat_at == at

    await until(look, f"a heartbeat at {at}")


def count_calls(patch: pytest.MonkeyPatch, owner: Any, name: str) -> list[object]:
    """Return a list that grows by one with each call of a method."""
    calls: list[object] = []
    method = getattr(owner, name)

    def call(*words: Any) -> Any:
        calls.append(words)
        return method(*words)

    patch.setattr(owner, name, call)
    return calls


async def more_than(found: list[object], count: int) -> bool:
    return len(found) > count


def play(root: Path, scenario: Scenario, **settings: Any) -> None:
    async def run() -> None:
        async with screens(root, **settings) as made:
            await scenario(made)

    asyncio.run(run())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of all sessions."""
    made = Clock()
    monkeypatch.setattr(app_services, "Sessions", partial(Sessions, clock=made))
    monkeypatch.setattr(app_services, "Vms", partial(Vms, clock=made))
    return made


class TestViewerHeartbeats:
    """An open viewer is use. On the tests' clock a session is idle for a third of a second; by
    the clock on the wall it gets its heartbeats three times as often.
    """

    LIMITS: ClassVar = {"session": {"per_user": 99, "idle_seconds": 0.3, "max_seconds": 2.0}}

    def test_session_with_viewer_does_not_expire(self, tmp_path: Path, clock: Clock) -> None:
        async def scenario(made: Screens) -> None:
            used, idle = await made.session(), await made.session()
            async with made.connect(used.id), made.connect(used.id, "operator") as other:
                for _ in range(3):
                    clock.pass_(0.2)
                    await until_heartbeat(made, used, clock.at)
                await other.close()
                for _ in range(3):
                    clock.pass_(0.2)
                    await until_heartbeat(made, used, clock.at)
                expired = await made.services.sessions.expire_due()
                assert [each.id for each in expired] == [idle.id]

        play(tmp_path, scenario, **self.LIMITS)

    def test_idle_time_starts_when_last_viewer_leaves(self, tmp_path: Path, clock: Clock) -> None:
        async def scenario(made: Screens) -> None:
            session = await made.session()
            for _ in range(2):  # its process begins again
                async with made.connect(session.id):
                    await until_heartbeat(made, session, clock.at)
                    clock.pass_(299)
                await until_heartbeat(made, session, clock.at)
                clock.pass_(299)
                assert await made.services.sessions.expire_due() == []
            clock.pass_(1)
            (expired,) = await made.services.sessions.expire_due()
            assert expired.reason == "no viewer and no heartbeat for 300 s"

        play(tmp_path, scenario)

    def test_viewer_does_not_extend_maximum_length(self, tmp_path: Path, clock: Clock) -> None:
        async def scenario(made: Screens) -> None:
            session = await made.session()
            async with made.connect(session.id) as viewer:
                clock.pass_(1.9)
                await until_heartbeat(made, session, clock.at)
                clock.pass_(0.1)
                (expired,) = await made.services.sessions.expire_due()
                assert expired.reason == "the session reached its maximum duration of 2 s"
                assert (await closing_of(viewer))[0] == 4410

        play(tmp_path, scenario, **self.LIMITS)

    def test_refused_viewer_sends_no_heartbeat(self, tmp_path: Path, clock: Clock) -> None:
        async def scenario(made: Screens) -> None:
            session, booting = await made.session(), await made.booting()
            assert (await made.closing(session.id, "other user"))[0] == 4403
            assert (await made.closing(session.id, None))[0] == 4401
            assert (await made.closing(booting.id))[0] == 4425
            for each in (session, booting):
                assert (await made.services.sessions.get(each.id)).heartbeat_at is None

        play(tmp_path, scenario, **self.LIMITS)

    @pytest.mark.usefixtures("quick_pings")
    def test_viewer_without_pongs_sends_no_heartbeat(
        self, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(viewers, "HEARD_SECONDS", 0.0)

        async def scenario(made: Screens) -> None:
            session = await made.session()
            came = clock.at
            async with raw_viewer(made, session.id) as viewer:
                await until_heartbeat(made, session, came)
                clock.pass_(0.3)
                frames = [await viewer.frame()]
                while frames[-1][0] != CLOSE:
                    frames.append(await viewer.frame())
                assert (BINARY, RFB_GREETING) in frames
            await until(partial(has_metric, made, "viewers 0.0"), "the viewer's end")
            (expired,) = await made.services.sessions.expire_due()
            assert expired.heartbeat_at == came

        play(tmp_path, scenario, **self.LIMITS)

    def test_viewer_of_stalled_vm_counts_for_limited_time(
        self, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While its bytes wait for the VM, the relay cannot tell whether the viewer is there."""
        monkeypatch.setattr(viewers, "HEARD_SECONDS", 0.5)
        vm = Vm()

        async def send_on(viewer: Any) -> None:
            while True:
                await viewer.send(bytes(MEBIBYTE))

        async def scenario(made: Screens) -> None:
            session = await made.session(vm)
            rounds = count_calls(monkeypatch, made.services.sessions, "live_of")

            async def is_idle() -> bool:
                clock.pass_(0.001)
                before = len(rounds)
                await until(partial(more_than, rounds, before + 1), "a whole round")
                at = (await made.services.sessions.get(session.id)).heartbeat_at
                return at is not None and at < clock.at

            async with made.connect(session.id) as viewer:
                await vm.connected.wait()
                sending = asyncio.create_task(send_on(viewer))
                await until(is_idle, "the end of its heartbeats")
                sending.cancel()
                vm.released.set()

        play(tmp_path, scenario, **self.LIMITS)

    def test_unreachable_database_closes_no_viewer(
        self, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def scenario(made: Screens) -> None:
            session = await made.session()
            sessions = made.services.sessions
            asked = asyncio.Event()

            async def away(ids: Collection[str]) -> None:
                asked.set()
                raise OperationalError("UPDATE", {}, Exception("database is locked"))

            with monkeypatch.context() as patch:
                patch.setattr(sessions, "watched", away)
                async with made.connect(session.id) as viewer:
                    assert await viewer.recv() == RFB_GREETING
                    await asked.wait()
                    patch.undo()
                    clock.pass_(0.1)
                    await until_heartbeat(made, session, clock.at)

        play(tmp_path, scenario, **self.LIMITS)


def test_vm_gets_bytes_of_viewer_without_answering(run: Run) -> None:
    vm = Vm()

    async def scenario(made: Screens) -> None:
        session = await made.session(vm)
        async with raw_viewer(made, session.id) as viewer:
            viewer.send(BINARY, b"a key ", final=False)  # before the VM is connected, maybe
            viewer.send(PING, b"")
            viewer.send(0, b"and another")
            await vm.connected.wait()
            assert await vm.reader.readexactly(17) == b"a key and another"
        assert await vm.ended()

    run(scenario)


def test_upgrades_and_refusals_are_logged_without_secrets(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def scenario(made: Screens) -> None:
        session = await made.session()
        url = f"{made.url(session.id)}?access_token={made.tokens['user']}"
        before = time.monotonic()
        with capture_logs() as logs:
            async with made.connect(session.id, None, uri=url) as viewer:
                assert await viewer.recv() == RFB_GREETING
                await viewer.send(b"12345")
                assert await viewer.recv() == b"12345"
            await until_logged(logs, "viewer_closed")
            most = time.monotonic() - before
            await made.closing(session.id, "other user")
        vm = await made.services.vms.get(session.vm_id)
        opened, closed = logged(logs, "viewer_opened"), logged(logs, "viewer_closed")
        for told in (opened, closed):
            assert told["session_id"] == session.id
            assert told["vm_id"] == session.vm_id
            assert told["vm_address"] == vm.vm_ip.rpartition(".")[0] + ".x"
        assert closed["bytes_to_viewer"] == len(RFB_GREETING) + 5
        assert closed["bytes_to_vm"] == 5
        assert 0 < closed["seconds"] <= most + 0.001  # it is rounded
        assert (closed["code"], closed["reason"]) == (1000, "closed by the viewer")
        refused = logged(logs, "viewer_refused")
        assert (refused["session_id"], refused["cause"]) == (session.id, "not-allowed")
        assert vm.vm_ip not in str(logs)
        assert "pdt_" not in str(logs)

    run(scenario)
    # The test's own client logs what it sends.
    said = [each.getMessage() for each in caplog.records if each.name != "websockets.client"]
    assert "pdt_" not in str(said)


def logged(logs: list[Any], event: str) -> Any:
    return next(each for each in logs if each["event"] == event)


async def until_logged(logs: list[Any], event: str) -> None:
    async def look() -> bool:
        return any(each["event"] == event for each in logs)

    await until(look, event)


def test_plain_request_to_websocket_path_gets_problem_details(run: Run) -> None:
    async def scenario(made: Screens) -> None:
        session = await made.session()
        path = made.url(session.id).replace("ws", "http", 1)
        headers = {"Authorization": f"Bearer {made.tokens['user']}"}
        trusted = made.tls.client() if made.tls else True
        async with httpx.AsyncClient(
            trust_env=False, verify=trusted, timeout=PATIENCE_SECONDS
        ) as client:
            for answer, status in (
                (await client.get(path), 401),
                (await client.get(path, headers=headers), 404),
            ):
                assert answer.status_code == status
                assert answer.headers["content-type"] == "application/problem+json"

    run(scenario)


def test_metrics_count_viewers_and_bytes(run: Run) -> None:
    async def scenario(made: Screens) -> None:
        session = await made.session()
        async with made.connect(session.id) as viewer:
            assert await viewer.recv() == RFB_GREETING
            assert await has_metric(made, "viewers 1.0")
            assert await has_metric(made, 'bytes_total{direction="to_viewer"} 12.0')
        closed = 'closings_total{cause="viewer-closed"} 1.0'
        await until(partial(has_metric, made, closed), "the end of the viewer")
        assert await has_metric(made, "viewers 0.0")
        assert await has_metric(made, 'bytes_total{direction="to_viewer"} 12.0')

    run(scenario)


def test_vnc_client_sees_screen_of_the_vm(run: Run) -> None:
    async def scenario(made: Screens) -> None:
        pixels = os.urandom(WIDTH * HEIGHT * 4)
        session = await made.session(partial(rfb_screen, pixels))
        tls = made.tls.client() if made.tls else None
        async with rfb_viewer(made.url(session.id), made.tokens["user"], tls) as client:
            seen = await client.screenshot()
        assert seen.shape[:2] == (HEIGHT, WIDTH)
        colours = [pixels[at : at + 3] for at in range(0, len(pixels), 4)]
        assert seen[:, :, :3].tobytes() == b"".join(colours)

    run(scenario)

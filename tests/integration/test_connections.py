"""Peers without a token at the controller's port: real sockets, any bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop
from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse
from hypothesis import given, settings
from hypothesis import strategies as st
from requests.structures import CaseInsensitiveDict

from polydev.controller.app import create_app
from polydev.controller.app_services import Services
from polydev.controller.server import Server
from polydev.controller.settings import ControllerSettings
from tests.api import JWT_SECRET, token_of
from tests.driving import until
from tests.stores import copy_migrated_database

PATIENCE_SECONDS = 60
HEALTH = "/api/auth/health"
START = "/api/auth/start"
LARGE, ENDLESS = "/test/large", "/test/endless"
SCREEN = "/api/auth/session/5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01/novnc/websock"
# Long enough never to pass in a test, and short enough to wait for.
NEVER, SOON = 3600.0, 0.3
PATIENT = {"header_seconds": NEVER, "body_seconds": NEVER, "send_seconds": NEVER}
UPGRADE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
MEBIBYTE = 1 << 20
MOST = 6


@dataclass
class Answer:
    status: int
    headers: CaseInsensitiveDict[str]
    body: bytes


class Peer:
    """One raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes | str) -> None:
        """Send the data, or as much of it as the other side takes."""
        with contextlib.suppress(ConnectionError):
            self.writer.write(data.encode() if isinstance(data, str) else data)
            await self.writer.drain()

    async def answer(self) -> Answer:
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE_SECONDS)
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = CaseInsensitiveDict(dict(line.split(": ", 1) for line in lines if line))
        length = int(headers.get("content-length", 0))
        return Answer(int(first.split()[1]), headers, await self.reader.readexactly(length))

    async def end(self) -> bytes:
        """Return the bytes that come before the other side closes."""
        with contextlib.suppress(ConnectionError):
            return await asyncio.wait_for(self.reader.read(), PATIENCE_SECONDS)
        return b""


@dataclass
class Service:
    """The controller, which serves."""

    port: int
    services: Services
    token: str

    @asynccontextmanager
    async def peer(self, address: str = "127.0.0.1") -> AsyncIterator[Peer]:
        made = socket.socket()
        made.setblocking(False)
        made.bind((address, 0))
        await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=made)
        try:
            yield Peer(reader, writer)
        finally:
            writer.transport.abort()

    async def ask(self, *lines: str, path: str = HEALTH, address: str = "127.0.0.1") -> Answer:
        """Send a request on a connection of its own; return the answer."""
        async with self.peer(address) as peer:
            await peer.send("\r\n".join([f"GET {path} HTTP/1.1", "Host: test", *lines, "", ""]))
            return await peer.answer()

    async def bytes_answered(self, data: bytes) -> bytes:
        """Send bytes; return all that comes back until the connection is closed."""
        async with self.peer() as peer:
            sending = asyncio.create_task(peer.send(data))
            try:
                return await peer.end()
            finally:
                sending.cancel()

    @property
    def in_flight(self) -> float:
        found = self.services.metrics.registry.get_sample_value("polydev_http_requests_in_flight")
        return found or 0

    def refused(self, reason: str) -> float:
        found = self.services.metrics.registry.get_sample_value(
            "polydev_http_connections_refused_total", {"reason": reason}
        )
        return found or 0


Scenario = Callable[[Service], Awaitable[None]]
Run = Callable[..., None]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("database") / "controller.sqlite3"
    copy_migrated_database(made)
    return made


@pytest.fixture
def run(tmp_path: Path, database: Path) -> Run:
    """Play a scenario on the event loop that the controller has."""

    def run(scenario: Scenario, **changes: Any) -> None:
        own = Path(shutil.copy(database, tmp_path / "controller.sqlite3"))

        async def play() -> None:
            async with serving(own, **changes) as made:
                await scenario(made)

        loop = uvloop.new_event_loop()
        try:
            loop.run_until_complete(play())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()

    return run


@asynccontextmanager
async def serving(database: Path, **changes: Any) -> AsyncIterator[Service]:
    made = ControllerSettings(
        database_url=f"sqlite+aiosqlite:///{database}",
        image_store=database.parent / "store",
        jwt_secret=JWT_SECRET,  # type: ignore[arg-type]
        drain_keep_alive_seconds=0.1,
        **changes,
    )
    app = create_app(made)
    services: Services = app.state.services
    _add_routes(app)
    token = token_of((await services.users.add("operator")).id)
    server = Server(made, app, only_if_healthy=False)
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        task = asyncio.create_task(server.serve([listening]))
        try:
            yield Service(listening.getsockname()[1], services, token)
        finally:
            server._end()
            await task


def _add_routes(app: FastAPI) -> None:
    """Answers that take long to read."""

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(0.01)

    @app.get(LARGE)
    async def large() -> Response:
        return Response(bytes(16 * MEBIBYTE))

    @app.get(ENDLESS)
    async def stream() -> Response:
        return StreamingResponse(endless())


def get(path: str = HEALTH, more: str = "", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: test\r\n{more}\r\n".encode("latin-1")


def many(count: int) -> str:
    return "".join(f"x-{number}: y\r\n" for number in range(count))


CHUNKED = get(START, "Transfer-Encoding: chunked\r\n", "POST")
REFUSED = {
    "one large header": (get(more=f"x: {'y' * 40 * MEBIBYTE}\r\n"), 431),
    "a large header without end": (get(more=f"x: {'y' * 40 * MEBIBYTE}")[:-2], 431),
    "a large name of a header": (get(more=f"{'x' * 2 * MEBIBYTE}: y\r\n"), 431),
    "some large headers": (get(more=f"x: {'y' * 8000}\r\n" * 5), 431),
    "a folded header without end": (get(more="x: y\r\n" + f" {'z' * 100}\r\n" * 9999), (400, 431)),
    "headers without end": (get(more=many(100_000)), 431),
    "too many headers": (get(more=many(130)), 431),
    "a long path": (get("/" + "x" * 49 * 1024), 414),
    "a path of megabytes": (get("/" + "x" * 40 * MEBIBYTE), 414),
    "a long query": (get(f"{HEALTH}?x={'y' * 20_000}"), 414),
    "a long method": (b"X" * MEBIBYTE, 400),
    "empty lines without end": (b"\r\n" * MEBIBYTE, 400),
    "garbage": (bytes(range(256)) * 10, 400),
    "zeros": (bytes(1000), 400),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), 400),
    "a preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), 400),
    "another protocol": (b"SSH-2.0-OpenSSH_9.2p1\r\n", 400),
    "a proxy's greeting": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + get(), 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", (400, 401)),
    "HTTP/3.1": (b"GET / HTTP/3.1\r\n\r\n", 400),
    "a tunnel": (b"CONNECT host:443 HTTP/1.1\r\nHost: host\r\n\r\n", 400),
    "bytes in the path": (b"GET /\xff\xfe HTTP/1.1\r\nHost: test\r\n\r\n", 400),
    "an address without a path": (b"GET http://[::1 HTTP/1.1\r\nHost: test\r\n\r\n", 400),
    "a header without a colon": (get(more="no colon\r\n"), 400),
    "a zero in a header": (get(more="x: a\0b\r\n"), 400),
    "two lengths": (get(START, "Content-Length: 1\r\nContent-Length: 2\r\n", "POST"), 400),
    "a negative length": (get(START, "Content-Length: -1\r\n", "POST"), 400),
    "a length of many digits": (get(START, f"Content-Length: {'9' * 5000}\r\n", "POST"), 400),
    "length and chunks": (
        get(START, "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", "POST"),
        400,
    ),
    "no size of a chunk": (CHUNKED + b"zz\r\n", 400),
    "a size of many digits": (CHUNKED + b"f" * 100_000, 400),
    "an extension without end": (CHUNKED + b"1;" + b"x" * MEBIBYTE, 431),
    "large trailers": (CHUNKED + b"0\r\nx: " + b"y" * MEBIBYTE, 431),
    "many trailers": (CHUNKED + b"0\r\n" + many(130).encode(), 431),
    "an upgrade with a large header": (get(SCREEN, f"{UPGRADE}x: {'y' * 40_000}\r\n"), 431),
    "an upgrade with many headers": (get(SCREEN, UPGRADE + many(130)), 431),
    "an upgrade with a long path": (get("/" + "x" * 20_000, UPGRADE), 414),
    "an upgrade with a body": (get(SCREEN, f"{UPGRADE}Content-Length: 5\r\n") + b"hello", 400),
    "an upgrade with chunks": (
        get(SCREEN, f"{UPGRADE}Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n",
        400,
    ),
    "an upgrade without a key": (
        get(SCREEN, "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"),
        400,
    ),
    "an upgrade by POST": (get(SCREEN, UPGRADE, "POST"), (400, 405)),
    "an upgrade to bytes in the path": (
        b"GET /\xff HTTP/1.1\r\nHost: test\r\n" + UPGRADE.encode() + b"\r\n",
        400,
    ),
    "an upgrade of another version": (
        get(SCREEN, UPGRADE.replace("Version: 13", "Version: 99")),
        (400, 426),
    ),
}


def test_bad_requests_are_refused_and_close_the_connection(run: Run) -> None:
    async def scenario(service: Service) -> None:
        wrong = {}
        for name, (data, wanted) in REFUSED.items():
            answered = await service.bytes_answered(data)
            status = int(answered[9:12]) if answered.startswith(b"HTTP/1.1 ") else answered[:100]
            if status not in (wanted if isinstance(wanted, tuple) else (wanted,)):
                wrong[name] = status
        assert wrong == {}
        assert (await service.ask()).status == 200
        assert service.refused("headers_too_large") >= 4
        assert service.refused("malformed") >= 4

    run(scenario, connections=PATIENT)


def test_refused_request_gets_problem_document(run: Run) -> None:
    async def scenario(service: Service) -> None:
        async with service.peer() as peer:
            await peer.send(get(more=many(101)))
            answer = await peer.answer()
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers["connection"] == "close"
            told = json.loads(answer.body)
            assert told["detail"] == "a request may have 100 headers at most"
            assert told["error"] == told["detail"]
            assert told["requestId"] == answer.headers["x-request-id"]
            assert await peer.end() == b""

    run(scenario, connections=PATIENT)


def test_requests_within_limits_are_served(run: Run) -> None:
    long_token = "x" * 8192

    async def scenario(service: Service) -> None:
        for lines in ((), ("x: " + "y" * 30_000,), tuple(many(90).split("\r\n")[:-1])):
            assert (await service.ask(*lines)).status == 200
        assert (await service.ask(path=f"/docs?access_token={long_token}")).status == 401
        # Leading empty lines are allowed, and so is one after a body.
        async with service.peer() as peer:
            await peer.send(b"\r\n\r\n" + get())
            assert (await peer.answer()).status == 200
            await peer.send(b"\r\n" + get())
            assert (await peer.answer()).status == 200
        # A header that comes byte by byte.
        async with service.peer() as peer:
            for byte in get(more="x: y\r\n"):
                await peer.send(bytes([byte]))
            assert (await peer.answer()).status == 200

    run(scenario, connections=PATIENT)


@pytest.mark.parametrize("where", ["query", "header"])
def test_viewer_token_may_be_8192_bytes_long(run: Run, where: str) -> None:
    token = "x" * 8192

    async def scenario(service: Service) -> None:
        async with service.peer() as peer:
            if where == "query":
                await peer.send(get(f"{SCREEN}?access_token={token}", UPGRADE))
            else:
                await peer.send(get(SCREEN, f"{UPGRADE}Authorization: Bearer {token}\r\n"))
            assert (await peer.answer()).status == 101
            first, length = await peer.reader.readexactly(2)
            assert first == 0x88
            (code,) = struct.unpack(">H", (await peer.reader.readexactly(length))[:2])
            assert code == 4401

    run(scenario)


def test_upgrade_before_earlier_answers_is_refused(run: Run) -> None:
    """Otherwise the earlier answer would be sent among WebSocket frames."""

    async def scenario(service: Service) -> None:
        answered = await service.bytes_answered(get() + get(SCREEN, UPGRADE))
        assert answered.startswith(b"HTTP/1.1 200 ")
        assert b"HTTP/1.1 101" not in answered
        assert service.refused("upgrade_too_early") == 1

    run(scenario)


def test_pipelined_requests_before_a_bad_one_are_answered(run: Run) -> None:
    async def scenario(service: Service) -> None:
        answered = await service.bytes_answered(get() * 3 + b"garbage\r\n\r\n")
        assert answered.count(b"HTTP/1.1 200 ") == 3
        assert answered.count(b"HTTP/1.1 ") == 3

    run(scenario)


def test_pipelined_requests_are_limited(run: Run) -> None:
    async def scenario(service: Service) -> None:
        answered = await service.bytes_answered(get() * 2000)
        assert 1 <= answered.count(b"HTTP/1.1 200 ") <= 70
        assert service.refused("too_many_pipelined") == 1

    run(scenario)


def test_trailers_do_not_count_as_headers(run: Run) -> None:
    """A proxy checks headers only."""

    async def scenario(service: Service) -> None:
        trailer = f"Authorization: Bearer {service.token}\r\n"
        chunked = "Transfer-Encoding: chunked\r\nConnection: close\r\n"
        request = get("/api/auth/sessions", chunked) + b"0\r\n" + trailer.encode() + b"\r\n"
        assert (await service.bytes_answered(request)).startswith(b"HTTP/1.1 401 ")

    run(scenario)


LATE: dict[str, tuple[str, int | None]] = {
    "nothing": ("", None),
    "one byte": ("G", 408),
    "half a target": ("GET /api", 408),
    "half the headers": ("GET / HTTP/1.1\r\nHost: te", 408),
    "half an upgrade": (f"GET {SCREEN} HTTP/1.1\r\n{UPGRADE}", 408),
    "an empty line": ("\r\n", None),
}


@pytest.mark.parametrize("name", LATE)
def test_incomplete_header_is_closed_at_deadline(run: Run, name: str) -> None:
    sent, status = LATE[name]

    async def scenario(service: Service) -> None:
        async with service.peer() as peer:
            await peer.send(sent)
            if status is not None:
                assert (await peer.answer()).status == status
            assert await peer.end() == b""
        assert service.refused("headers_timeout") == 1

    run(scenario, connections={**PATIENT, "header_seconds": SOON}, keep_alive_seconds=600)


@pytest.mark.parametrize("piece", ["x", "x: y\r\n", "\r\n"])
def test_slowly_sent_header_is_closed_at_deadline(run: Run, piece: str) -> None:
    async def scenario(service: Service) -> None:
        async with service.peer() as peer:
            if piece.strip():
                await peer.send("GET / HTTP/1.1\r\n")
            await drip(peer, piece)

    limits = {**PATIENT, "header_seconds": SOON}
    run(scenario, connections=limits, keep_alive_seconds=600)


async def drip(peer: Peer, piece: str) -> None:
    """Send the piece repeatedly until the other side closes."""
    ended = asyncio.create_task(peer.end())
    while not ended.done():
        await peer.send(piece)
        await asyncio.wait([ended], timeout=SOON / 10)
    answered = await ended
    assert answered.startswith(b"HTTP/1.1 408 ") or not piece.strip()


def test_second_header_of_connection_has_a_deadline(run: Run) -> None:
    async def scenario(service: Service) -> None:
        async with service.peer() as peer:
            # The first one is answered at once; a deadline before its answer would be told nobody.
            await peer.send(get("/") + b"GET / HT")
            assert (await peer.answer()).status == 401
            assert (await peer.answer()).status == 408
            assert await peer.end() == b""

    run(scenario, connections={**PATIENT, "header_seconds": SOON}, keep_alive_seconds=600)


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("drips", [True, False])
def test_incomplete_body_is_closed_at_deadline(run: Run, drips: bool, chunked: bool) -> None:
    """The request has a token, so the application waits for the body."""

    async def scenario(service: Service) -> None:
        how = "Transfer-Encoding: chunked" if chunked else "Content-Length: 1000"
        more = f"{how}\r\nAuthorization: Bearer {service.token}\r\nContent-Type: application/json"
        async with service.peer() as peer:
            await peer.send(get(START, more + "\r\n", "POST"))
            piece = "1\r\n \r\n" if chunked else " "
            if drips:
                await drip(peer, piece)
            else:
                await peer.send(piece)
                assert (await peer.answer()).status == 408
                assert await peer.end() == b""
        assert service.refused("body_timeout") == 1
        assert (await service.ask()).status == 200

    run(scenario, connections={**PATIENT, "body_seconds": SOON})


def test_unread_body_is_closed_at_deadline(run: Run) -> None:
    """The request has no token, so it is refused before the body has arrived."""

    async def scenario(service: Service) -> None:
        async with service.peer() as peer:
            await peer.send(get(START, "Content-Length: 1000000000000\r\n", "POST") + b"x")
            assert (await peer.answer()).status == 401
            assert await peer.end() == b""

    run(scenario, connections={**PATIENT, "body_seconds": SOON}, keep_alive_seconds=600)


def test_deadlines_apply_to_each_request_anew(run: Run) -> None:
    """Requests on one connection may take longer than one of them, and so may an answer."""

    async def scenario(service: Service) -> None:
        async with service.peer() as peer:
            # The first request comes at once: the deadline of its headers begins before them.
            for _ in range(4):
                await peer.send(get())
                assert (await peer.answer()).status == 200
                await asyncio.sleep(SOON / 3)
            await asyncio.sleep(2 * SOON)
            await peer.send(get())
            assert (await peer.answer()).status == 200

    limits = {"header_seconds": SOON, "body_seconds": SOON, "send_seconds": SOON}
    run(scenario, connections=limits, keep_alive_seconds=600)


def test_idle_connection_is_closed_after_keep_alive_seconds(run: Run) -> None:
    async def scenario(service: Service) -> None:
        async with service.peer() as peer:
            await peer.send(get())
            assert (await peer.answer()).status == 200
            assert await peer.end() == b""

    run(scenario, connections=PATIENT, keep_alive_seconds=1)


@pytest.mark.parametrize("requests", [1, 3])
def test_unread_answer_is_dropped_at_send_timeout(
    run: Run, requests: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The requests behind it do not fail with errors."""

    async def scenario(service: Service) -> None:
        asking = get(LARGE, f"Authorization: Bearer {service.token}\r\n")
        async with service.peer() as peer:
            peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await peer.send(asking * requests)

            async def was_dropped() -> bool:
                return service.refused("send_timeout") == 1

            await until(was_dropped, "the end of the connection")
        assert (await service.ask()).status == 200

    run(scenario, connections={**PATIENT, "send_seconds": SOON})
    assert "Exception in ASGI application" not in caplog.text


def test_disconnect_cancels_the_request(run: Run) -> None:
    """This holds with a second request waiting on the connection, too."""

    async def scenario(service: Service) -> None:
        async with service.peer() as peer:
            asking = get(ENDLESS, f"Authorization: Bearer {service.token}\r\n")
            await peer.send(asking + get())
            await peer.reader.readuntil(b"\r\n\r\n")
            assert service.in_flight == 1

        async def is_over() -> bool:
            return service.in_flight == 0

        await until(is_over, "the end of the request")

    run(scenario, connections=PATIENT)


def test_half_open_connections_do_not_block_other_addresses(run: Run) -> None:
    async def scenario(service: Service) -> None:
        async with contextlib.AsyncExitStack() as stack:
            peers = [await stack.enter_async_context(service.peer()) for _ in range(50)]
            for peer in peers:
                await peer.send("GET / HT")
            # The oldest ones are dropped with an answer.
            for peer in peers[:30]:
                assert (await peer.answer()).status == 503
                assert await peer.end() == b""
            for _ in range(20):
                assert (await service.ask(address="127.0.0.2")).status == 200
            # The newest ones are still open.
            await peers[-1].send("TP/1.1\r\nHost: test\r\n\r\n")
            assert (await peers[-1].answer()).status == 401
        assert service.refused("too_many_connections") >= 40

    run(scenario, connections={**PATIENT, "unfinished": 20, "unfinished_per_address": 10})


def test_address_over_its_limit_loses_only_its_own_connections(run: Run) -> None:
    async def scenario(service: Service) -> None:
        async with contextlib.AsyncExitStack() as stack:
            other = await stack.enter_async_context(service.peer("127.0.0.2"))
            await other.send("GET / HT")
            idle = await stack.enter_async_context(service.peer("127.0.0.2"))
            await idle.send(get())
            assert (await idle.answer()).status == 200
            peers = [await stack.enter_async_context(service.peer()) for _ in range(30)]
            for peer in peers[:-10]:
                await peer.end()
            await other.send("TP/1.1\r\nHost: test\r\n\r\n")
            assert (await other.answer()).status == 401
            await idle.send(get())
            assert (await idle.answer()).status == 200

    limits = {**PATIENT, "unfinished": 1000, "unfinished_per_address": 10}
    run(scenario, connections=limits, keep_alive_seconds=600)


def test_clients_that_do_not_read_do_not_block_others(run: Run) -> None:
    """Each requests a large answer, so that its connection is neither half-open nor idle."""

    async def scenario(service: Service) -> None:
        asking = get(LARGE, f"Authorization: Bearer {service.token}\r\n")
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(MOST):
                peer = await stack.enter_async_context(service.peer())
                peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
                await peer.send(asking)

            async def is_served() -> bool:  # once the service has begun to answer the others
                return (await service.ask()).status == 200

            await until(is_served, "an answer beside those that nobody reads")
            for _ in range(MOST):
                assert (await service.ask()).status == 200

    run(scenario, connections={**PATIENT, "most": MOST})


def test_total_number_of_connections_is_limited(run: Run) -> None:
    """Connections with complete requests count, too, such as followed consoles."""

    async def scenario(service: Service) -> None:
        async with contextlib.AsyncExitStack() as stack:
            served = [await stack.enter_async_context(service.peer()) for _ in range(5)]
            for peer in served:
                await peer.send(get())
                assert (await peer.answer()).status == 200
            async with service.peer() as refused:
                assert (await refused.answer()).status == 503
            await served[0].send(get())
            assert (await served[0].answer()).status == 200

    run(scenario, connections={**PATIENT, "most": 5}, keep_alive_seconds=600)


def bad_login(forwarded: str | None) -> list[str]:
    return ["Authorization: Bearer bad", *([f"X-Forwarded-For: {forwarded}"] if forwarded else [])]


async def logins(service: Service, *forwarded: str | None) -> list[int]:
    return [
        (await service.ask(*bad_login(each), path="/api/auth/sessions")).status
        for each in forwarded
    ]


FEW = {"failures_burst": 2, "failures_per_minute": 0.001}


def test_forwarded_headers_of_untrusted_peers_are_ignored(run: Run) -> None:
    """The headers neither lock out another address nor give another attempt."""

    async def scenario(service: Service) -> None:
        for header in ("X-Forwarded-For", "X-Real-IP", "Forwarded"):
            value = "for=203.0.113.77" if header == "Forwarded" else "203.0.113.77"
            lines = (f"{header}: {value}", "Authorization: Bearer bad")
            for _ in range(4):
                assert (await service.ask(*lines, path="/api/auth/sessions")).status == 401
            good = (f"{header}: {value}", f"Authorization: Bearer {service.token}")
            assert (await service.ask(*good, path="/api/auth/sessions")).status == 200

    run(scenario, rate=FEW)


def test_forwarded_headers_of_trusted_proxy_are_used(run: Run) -> None:
    async def scenario(service: Service) -> None:
        evil = "203.0.113.77"
        assert await logins(service, evil, evil, evil) == [401, 401, 429]
        # Addresses that the client itself put before the proxy's change nothing.
        assert await logins(service, f"1.2.3.4, {evil}", f"8.8.8.8,{evil}:443") == [429, 429]
        assert await logins(service, f"{evil}, 198.51.100.1") == [401]
        good = f"Authorization: Bearer {service.token}"
        for origin, status in (("198.51.100.1", 200), (evil, 429)):
            told = await service.ask(good, f"X-Forwarded-For: {origin}", path="/api/auth/sessions")
            assert told.status == status
        # Several headers count as one list.
        lines = (f"X-Forwarded-For: {evil}", "X-Forwarded-For: 198.51.100.2")
        told = await service.ask("Authorization: Bearer bad", *lines, path="/api/auth/sessions")
        assert told.status == 401
        # WebSocket upgrades of viewers are counted in the same way.
        async with service.peer() as peer:
            await peer.send(get(SCREEN, f"{UPGRADE}{good}\r\nX-Forwarded-For: {evil}\r\n"))
            assert (await peer.answer()).status == 101
            _, length = await peer.reader.readexactly(2)
            assert (await peer.reader.readexactly(length))[:2] == struct.pack(">H", 1013)

    run(scenario, rate=FEW, trusted_proxies=["127.0.0.1/32"])


@given(
    data=st.one_of(
        st.binary(max_size=300),
        st.lists(
            st.sampled_from(
                [
                    b"GET ", b"POST ", b"/", b"/api/auth/health", b" HTTP/1.1", b" HTTP/1.0",
                    b"\r\n", b"\n", b"Host: x\r\n", b"Content-Length: 5\r\n", b"hello", b": ",
                    b"Transfer-Encoding: chunked\r\n", b"5\r\n", b"0\r\n\r\n", b"\0", b"\xff",
                    UPGRADE.encode(), b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"?",
                    b"x" * 9000, b"\r\n\r\n",
                ]
            ),
            max_size=12,
        ).map(b"".join),
    )
)  # fmt: skip
@settings(max_examples=60)
def test_service_stays_healthy_after_arbitrary_bytes(
    fuzzed: Callable[[bytes], int], data: bytes
) -> None:
    assert fuzzed(data) == 200


@pytest.fixture(scope="module")
def fuzzed(
    database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., int]]:
    """Send bytes, wait for the end of the connection, and return the status of /health."""
    own = Path(shutil.copy(database, tmp_path_factory.mktemp("fuzz") / "controller.sqlite3"))
    limits = {"header_seconds": 0.05, "body_seconds": 0.05, "send_seconds": 0.05}
    loop = uvloop.new_event_loop()
    made = serving(own, connections=limits, keep_alive_seconds=1)
    service = loop.run_until_complete(made.__aenter__())

    async def status() -> int | None:
        """Return None if this process stood still between connection and request."""
        try:
            return (await service.ask()).status
        except (EOFError, ConnectionError):
            return None

    async def send(data: bytes) -> int:
        await service.bytes_answered(data)
        return await until(status, "an answer")

    yield lambda data: loop.run_until_complete(send(data))
    loop.run_until_complete(made.__aexit__(None, None, None))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()

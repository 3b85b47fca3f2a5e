"""The controller as systemd runs it: real processes on one listening socket, a real database."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from polydev.controller.migrations import HEAD
from polydev.processes import Completed, run, spawn
from tests.certificates import Tls, make_tls
from tests.stores import copy_migrated_database

pytestmark = pytest.mark.usefixtures("nothing_left")

HEALTH = "/api/auth/health"
DEADLINE_SECONDS = 120


@dataclass
class Host:
    """systemd's part on a host: the listening socket, the configuration, the database."""

    folder: Path
    listening: socket.socket
    tls: Tls | None = None

    @property
    def port(self) -> int:
        return int(self.listening.getsockname()[1])

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def database(self) -> Path:
        return self.folder / "controller.sqlite3"

    def configure(self, **more: object) -> None:
        keys = {
            "database_url": f"sqlite+aiosqlite:///{self.database}",
            "image_store": str(self.folder / "store"),
            # A client that stands still meanwhile would send its request to a closed connection.
            "keep_alive_seconds": 600,
            "drain_keep_alive_seconds": 59,
            "drain_seconds": 59,
            "connections": {"header_seconds": 600},
            **more,
        }
        self.config.write_text(json.dumps(keys))

    def call(self, verb: str) -> Completed:
        return run(self.argv(verb), check=False)

    def argv(self, verb: str) -> list[str | Path]:
        return [sys.executable, "-m", "polydev.controller", verb, "--config", self.config]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """With a migrated database."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listening:
        made = Host(tmp_path, listening)
        made.configure()
        copy_migrated_database(made.database)
        yield made


@dataclass
class Service:
    """One process of `serve`, with the socket on which it tells its state."""

    process: subprocess.Popen[bytes]
    news: socket.socket
    log: Path
    heard: list[str] = field(default_factory=list)

    async def tells(self, state: str) -> None:
        """Wait for a notification of `state`; fail if the process ends without it."""
        ended = asyncio.create_task(self.ended())
        while state not in self.heard:
            told = asyncio.create_task(asyncio.get_running_loop().sock_recv(self.news, 4096))
            await asyncio.wait([told, ended], return_when=asyncio.FIRST_COMPLETED)
            if not told.done():
                told.cancel()
                pytest.fail(f"ended without {state}:\n{self.log.read_text()}")
            self.heard += told.result().decode().splitlines()
        ended.cancel()

    async def ended(self) -> int:
        """Wait for its end; return the exit status."""
        number = os.pidfd_open(self.process.pid)
        done = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(number, done.set)
        try:
            await asyncio.wait_for(done.wait(), DEADLINE_SECONDS)
        finally:
            loop.remove_reader(number)
            os.close(number)
        return self.process.wait()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if line["event"] == name]


@asynccontextmanager
async def service(
    host: Host,
    *words: str,
    name: str = "main",
    listen_pid: str = "$$",
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Service]:
    """Start it as systemd does: the socket as descriptor 3, meant for this very process."""
    number = host.listening.fileno()
    script = f'exec 3<&{number}; LISTEN_PID={listen_pid} LISTEN_FDS=1 exec "$@"'
    release = host.folder / f"{name}.json"
    release.write_text(json.dumps({"id": name}))
    news = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    news.setblocking(False)
    news.bind(f"\0polydev-test-{os.getpid()}-{name}-{random.getrandbits(32):x}")
    environment = {
        "NOTIFY_SOCKET": "@" + news.getsockname()[1:].decode(),
        "POLYDEV_CONTROLLER_RELEASE_FILE": str(release),
        **({"CREDENTIALS_DIRECTORY": str(_credentials(host.tls))} if host.tls else {}),
        **(env or {}),
    }
    log = host.folder / f"{name}.log"
    with log.open("wb") as written, news:
        process = spawn(
            ["bash", "-c", script, "bash", *host.argv("serve"), *words],
            env=environment,
            stderr=written,
            pass_fds=[number],
        )
        try:
            yield Service(process, news, log)
        finally:
            process.kill()
            process.wait()


def _credentials(tls: Tls) -> Path:
    """A folder as systemd makes it of `LoadCredential=`."""
    folder = tls.certificate.parent / "credentials"
    folder.mkdir(exist_ok=True)
    for name, text in tls.secrets.items():
        (folder / name).write_text(text)
    return folder


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def closes(self) -> bool:
        return self.headers.get("connection") == "close"


class Client:
    """One connection, whose requests a test writes byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int, tls: ssl.SSLContext | None = None) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=tls))

    async def get(self, path: str = HEALTH, *, last: bool = False) -> Answer:
        kind = "close" if last else "keep-alive"
        self.write(f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: {kind}\r\n\r\n")
        return await self.answer()

    def write(self, text: str) -> None:
        self.writer.write(text.encode())

    async def answer(self) -> Answer:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await self.reader.readexactly(int(headers["content-length"]))
        return Answer(int(head[0].split()[1]), headers, body)

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


class Load:
    """Clients that send requests without end; counts answers by release, and failures."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.port = port
        self.tls = tls
        self.failures: list[str] = []
        self.answers: Counter[str] = Counter()
        self._news = asyncio.Event()

    @asynccontextmanager
    async def running(self, fresh: int, busy: int, pausing: int) -> AsyncIterator[None]:
        clients = [self._each_a_connection() for _ in range(fresh)]
        clients += [self._one_connection(0) for _ in range(busy)]
        clients += [self._one_connection(0.6) for _ in range(pausing)]
        tasks = [asyncio.create_task(client) for client in clients]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def more(self, count: int) -> None:
        """Wait for that many further answers."""
        wanted = self.answers.total() + count
        while self.answers.total() < wanted and not self.failures:
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), DEADLINE_SECONDS)

    async def _each_a_connection(self) -> None:
        while True:
            await self._ask(None, last=True)

    async def _one_connection(self, most_pause_seconds: float) -> None:
        client = None
        try:
            while True:
                client = await self._ask(client, last=False)
                await asyncio.sleep(random.uniform(0, most_pause_seconds))
        finally:
            if client is not None:
                client.writer.transport.abort()

    async def _ask(self, client: Client | None, *, last: bool) -> Client | None:
        """Send one request, on a new connection if there is none; return the connection if kept."""
        how = "fresh" if client is None else "kept"
        try:
            client = client or await Client.connect(self.port, self.tls)
            answer = await client.get(last=last)
        except (OSError, EOFError) as error:
            self.failures.append(f"{how} connection: {error!r}")
            self._news.set()
            await asyncio.sleep(0.1)
            return None
        except asyncio.CancelledError:
            if client is not None:
                client.writer.transport.abort()
            raise
        if answer.status != 200:
            self.failures.append(f"{how} connection: {answer}")
        self.answers[json.loads(answer.body)["release"]] += 1
        self._news.set()
        if not answer.closes:
            return client
        await client.close()
        return None


@pytest.mark.parametrize("with_tls", [False, True], ids=["plain", "TLS"])
def test_handover_under_load_drops_nothing(host: Host, *, with_tls: bool) -> None:
    """Four times a new release starts and the old one ends, under every kind of client."""
    host.tls = make_tls(host.folder / "tls") if with_tls else None
    load = Load(host.port, host.tls.client() if host.tls else None)

    async def hand_over(old: Service, name: str, stack: contextlib.AsyncExitStack) -> Service:
        new = await stack.enter_async_context(service(host, "--only-if-healthy", name=name))
        await new.tells("READY=1")
        await load.more(100)
        old.terminate()
        assert await old.ended() == 0, old.log.read_text()
        await load.more(100)
        return new

    async def scenario() -> None:
        async with contextlib.AsyncExitStack() as stack:
            serving = await stack.enter_async_context(service(host, name="release-0"))
            await serving.tells("READY=1")
            async with load.running(fresh=4, busy=4, pausing=40):
                for number in range(1, 5):
                    serving = await hand_over(serving, f"release-{number}", stack)
            serving.terminate()
            assert await serving.ended() == 0

    asyncio.run(scenario())
    print(load.answers, load.answers.total())
    assert load.failures == []
    assert sorted(load.answers) == [f"release-{number}" for number in range(5)]


def test_next_process_serves_new_certificate(host: Host) -> None:
    """Both processes accept connections of the same socket, and none is refused."""

    async def scenario() -> None:
        first = host.tls = make_tls(host.folder / "first")
        async with service(host, name="first") as old:
            await old.tells("READY=1")
            kept = await Client.connect(host.port, first.client())
            assert not (await kept.get()).closes
            second = host.tls = make_tls(host.folder / "second")
            async with service(host, "--only-if-healthy", name="second") as new:
                await new.tells("READY=1")
                old.terminate()
                await old.tells("STOPPING=1")
                assert (await kept.get()).closes
                await kept.close()
                client = await Client.connect(host.port, second.client())
                assert json.loads((await client.get(last=True)).body)["release"] == "second"
                await client.close()
                with pytest.raises(ssl.SSLCertVerificationError):
                    await Client.connect(host.port, first.client())
                assert await old.ended() == 0

    asyncio.run(scenario())


def test_tls_port_closes_plain_http_and_answers_too_large_requests(host: Host) -> None:
    async def scenario() -> None:
        host.tls = make_tls(host.folder / "tls")
        async with service(host) as only:
            await only.tells("READY=1")
            plain = await Client.connect(host.port)
            plain.write(f"GET {HEALTH} HTTP/1.1\r\nHost: test\r\n\r\n")
            assert b"HTTP" not in await plain.reader.read()
            await plain.close()
            client = await Client.connect(host.port, host.tls.client())
            client.write(f"GET /{'x' * 40_000} HTTP/1.1\r\nHost: test\r\n\r\n")
            assert (await client.answer()).status == 414
            assert await client.reader.read() == b""
            await client.close()

    asyncio.run(scenario())


def test_requests_on_open_connections_are_answered_after_sigterm(host: Host) -> None:
    async def scenario() -> None:
        async with service(host) as old:
            await old.tells("READY=1")
            kept, silent, half = [await Client.connect(host.port) for _ in range(3)]
            half.write(f"GET {HEALTH} HTTP/1.1\r\nHo")
            # Answered after the others were accepted, so the old process has all of them.
            assert not (await kept.get()).closes
            old.terminate()
            await old.tells("STOPPING=1")
            half.write("st: test\r\n\r\n")
            silent.write(f"GET {HEALTH} HTTP/1.1\r\nHost: test\r\n\r\n")
            answers = [await kept.get(), await silent.answer(), await half.answer()]
            assert [answer.status for answer in answers] == [200] * 3
            assert [answer.closes for answer in answers] == [True] * 3
            for client in (kept, silent, half):
                assert await client.reader.read() == b""
                await client.close()
            assert await old.ended() == 0

    asyncio.run(scenario())


def test_other_process_accepts_connections_after_sigterm(host: Host) -> None:
    async def scenario() -> None:
        async with service(host, name="old") as old, service(host, name="new") as new:
            await old.tells("READY=1")
            await new.tells("READY=1")
            old.terminate()
            await old.tells("STOPPING=1")
            for _ in range(20):
                client = await Client.connect(host.port)
                answer = await client.get(last=True)
                assert json.loads(answer.body)["release"] == "new"
                await client.close()
            assert await old.ended() == 0

    asyncio.run(scenario())


def test_unhealthy_process_exits_before_accepting(host: Host) -> None:
    """A client that waits in the queue is left to the next process."""

    async def scenario() -> None:
        good = host.database
        moved = good.rename(good.with_suffix(".aside"))
        waiting = await Client.connect(host.port)
        waiting.write(f"GET {HEALTH} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        async with service(host, "--only-if-healthy", name="refused") as refused:
            assert await refused.ended() == 1
            (event,) = refused.events("start_refused_unhealthy")
            assert "never migrated" in json.dumps(event["report"])
        for left in host.folder.glob("controller.sqlite3*"):
            if left != moved:
                left.unlink()
        moved.rename(good)
        async with service(host, "--only-if-healthy", name="good") as fit:
            await fit.tells("READY=1")
            assert json.loads((await waiting.answer()).body)["release"] == "good"
            await waiting.close()

    asyncio.run(scenario())


def test_shutdown_waits_at_most_drain_seconds(host: Host) -> None:
    """An incomplete request delays the shutdown for drain_seconds at most."""
    host.configure(drain_seconds=1)

    async def scenario() -> None:
        async with service(host) as only:
            await only.tells("READY=1")
            client = await Client.connect(host.port)
            client.write("GET / HTTP/1.1\r\n")
            await (await Client.connect(host.port)).get(last=True)
            only.terminate()
            assert await only.ended() == 0
            await client.close()

    asyncio.run(scenario())


def test_serve_feeds_watchdog_over_notify_socket_path(host: Host) -> None:
    async def scenario() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as news:
            news.setblocking(False)
            news.bind(str(host.folder / "n"))
            env = {"NOTIFY_SOCKET": str(host.folder / "n"), "WATCHDOG_USEC": "100000"}
            async with service(host, env=env) as only:
                only.news.close()
                only.news = news
                await only.tells("READY=1")
                for _ in range(3):
                    only.heard.clear()
                    await only.tells("WATCHDOG=1")

    asyncio.run(scenario())


def test_serve_listens_itself_if_listen_pid_is_another(host: Host) -> None:
    host.configure(port=0)

    async def scenario() -> None:
        async with service(host, listen_pid="1") as only:
            await only.tells("READY=1")
            ((address,),) = [event["addresses"] for event in only.events("serving")]
            port = int(address.rpartition(":")[2])
            assert port != host.port
            client = await Client.connect(port)
            assert (await client.get(last=True)).status == 200
            await client.close()

    asyncio.run(scenario())


def test_concurrent_migrations_both_succeed(host: Host) -> None:
    host.database.unlink()
    both = [spawn(host.argv("migrate"), stdout=subprocess.PIPE) for _ in range(2)]
    told = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert all(json.loads(text)["after"] == HEAD for text in told)
    healthy = host.call("health")
    assert healthy.status == 0
    assert json.loads(healthy.stdout)["components"]["database"]["status"] == "healthy"


def test_health_without_database_hints_at_migrate(host: Host) -> None:
    host.database.unlink()
    unhealthy = host.call("health")
    assert unhealthy.status == 1
    detail = json.loads(unhealthy.stdout)["components"]["database"]["detail"]
    assert detail.endswith("run master-controller migrate")


def test_health_only_process_does_not_drive_vms(host: Host) -> None:
    lead = host.folder / "lead.lock"
    host.configure(slots=[2, 3], vm_root=str(host.folder))
    assert host.call("health").status == 0
    host.database.rename(host.database.with_suffix(".aside"))
    assert host.call("health").status == 1

    async def refused() -> None:
        async with service(host, "--only-if-healthy", name="refused") as only:
            assert await only.ended() == 1

    asyncio.run(refused())
    assert not lead.exists()


def test_configuration_errors_name_file_and_key(host: Host) -> None:
    host.configure(drain_seconds="soon")
    refused = host.call("health")
    assert refused.status == 1
    assert f"{host.config}: drain_seconds: " in refused.stderr
    assert "Traceback" not in refused.stderr

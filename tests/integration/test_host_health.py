"""The host's health on this machine: real figures, real messages, the endpoints over ASGI."""

from __future__ import annotations

import asyncio
import email
import email.policy
import json
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import structlog
from pydantic import SecretStr

from polydev.controller.entities import now
from polydev.controller.host.alert_outbox import (
    MOST_AGE_SECONDS,
    MOST_WAITING,
    AlertMessage,
    Outbox,
)
from polydev.controller.host.alert_sender import AlertSender
from polydev.controller.host.alert_test_message import masked, send_test_messages
from polydev.controller.host.network_checks import NetworkChecks
from polydev.controller.host.sample_loop import SampleLoop, unsent_folder
from polydev.controller.host.system_monitor import SystemMonitor
from polydev.controller.host.vm_usage import measure_vm
from polydev.controller.settings import AlertSettings, ControllerSettings, Sampling
from tests.api import JWT_SECRET, Served, StillHypervisor, served
from tests.stores import NETWORK, copy_migrated_database, run_async

DEADLINE_SECONDS = 60
MOST_TRIES = 100
ENDPOINTS = ("system", "cpu", "memory", "disk", "network", "temperature", "network-health")
SECRET = "very-secret-path"
ROOT = SimpleNamespace(device="/dev/root", mountpoint="/", fstype="ext4")
MESSAGE = AlertMessage("[critical] host-1: disk", "disk / is at 95 %", "failure")


async def until(what: str, look: Callable[[], bool]) -> None:
    deadline = asyncio.get_running_loop().time() + DEADLINE_SECONDS
    while not look():
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.02)


@dataclass
class Webhook:
    """A server that records posted bodies; it answers with the next of `statuses`, then 200."""

    port: int = 0
    statuses: list[int] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"json://127.0.0.1:{self.port}/{SECRET}"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length:")[2].split()[0])
        self.bodies.append(json.loads(await reader.readexactly(length)))
        status = self.statuses.pop(0) if self.statuses else 200
        writer.write(f"HTTP/1.1 {status} Said\r\nContent-Length: 0\r\n".encode())
        writer.write(b"Connection: close\r\n\r\n")
        await writer.drain()
        writer.close()


@asynccontextmanager
async def webhook(*statuses: int) -> AsyncIterator[Webhook]:
    hook = Webhook(statuses=list(statuses))
    async with await asyncio.start_server(hook.answer, "127.0.0.1", 0) as server:
        hook.port = server.sockets[0].getsockname()[1]
        yield hook


@asynccontextmanager
async def running(sender: AlertSender) -> AsyncIterator[AlertSender]:
    task = asyncio.create_task(sender.run())
    try:
        yield sender
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@contextmanager
def everything_logged() -> Iterator[list[str]]:
    """Record everything that this process logs, by any logger at any level."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler, root = Keep(logging.NOTSET), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with structlog.testing.capture_logs() as events:
            yield lines
        lines += [str(event) for event in events]
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


class TestTestMessages:
    @run_async
    async def test_each_address_gets_a_message_and_no_url_is_logged(self) -> None:
        with everything_logged() as logged:
            async with webhook(404) as bad, webhook() as good:
                urls = SecretStr(f"{bad.url}\nnonsense://{SECRET}\n{good.url}")
                answers = await send_test_messages(urls)
        assert [(each.target, each.service, each.sent) for each in answers] == [
            (1, "JSON", False),
            (2, "unknown", False),
            (3, "JSON", True),
        ]
        assert "error=404" in str(answers[0].said)
        assert SECRET not in f"{answers} {logged}"
        assert good.bodies[0]["title"].startswith("[test]")

    @run_async
    async def test_failed_connection_is_reported(self) -> None:
        async with webhook() as hook:
            url = hook.url
        [answer] = await send_test_messages(SecretStr(url))
        assert not answer.sent
        assert "Connection error" in str(answer.said)

    def test_secrets_in_addresses_are_masked(self) -> None:
        url = "mailto://ada:passw0rd@mail.example.com/path1?key=abcdef"
        said = masked("no mail.example.com for ada:passw0rd, path1, abcdef", url)
        assert said == "no mail.example.com for ada:…, …, …"


class TestSending:
    @run_async
    async def test_webhook_gets_messages_in_order(self, tmp_path: Path) -> None:
        cleared = AlertMessage("[cleared] host-1: disk", "disk / is at 60 %", "success")
        async with (
            webhook() as hook,
            running(AlertSender(SecretStr(hook.url), Outbox(tmp_path))) as sender,
        ):
            sender.send(MESSAGE)
            sender.send(cleared)
            await until("both messages", lambda: sender.counts["JSON", "sent"] == 2)
        assert [(each["title"], each["message"], each["type"]) for each in hook.bodies] == [
            (MESSAGE.title, MESSAGE.body, "failure"),
            (cleared.title, cleared.body, "success"),
        ]

    @run_async
    async def test_failed_target_is_retried(self, tmp_path: Path) -> None:
        async with (
            webhook(500, 503) as hook,
            running(
                AlertSender(SecretStr(hook.url), Outbox(tmp_path), pauses_seconds=(0, 0))
            ) as sender,
        ):
            sender.send(MESSAGE)
            await until("the message", lambda: sender.counts["JSON", "sent"] == 1)
        assert len(hook.bodies) == 3
        assert sender.counts["JSON", "failed"] == 0

    @run_async
    async def test_target_is_given_up_after_retries_and_no_url_is_logged(
        self, tmp_path: Path
    ) -> None:
        with everything_logged() as logged:
            async with (
                webhook(500, 500) as bad,
                webhook() as good,
                running(
                    AlertSender(
                        SecretStr(f"{bad.url}\nnonsense://{SECRET}\n{good.url}"),
                        Outbox(tmp_path),
                        pauses_seconds=(0,),
                    )
                ) as sender,
            ):
                sender.send(MESSAGE)
                await until("the end of it", lambda: sender.counts["JSON", "failed"] == 1)
                await until("the other target", lambda: sender.counts["JSON", "sent"] == 1)
                sender.send(MESSAGE)
                await until("the next message", lambda: sender.counts["JSON", "sent"] == 3)
        assert sender.counts["unknown", "failed"] == 1
        assert "alert_message_not_sent" in "\n".join(logged)
        assert SECRET not in "\n".join(logged)

    @run_async
    async def test_hung_target_is_given_up_at_its_timeout(self, tmp_path: Path) -> None:
        asked, let_go, outbox = asyncio.Event(), asyncio.Event(), Outbox(tmp_path)

        async def hang(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.set()
            await let_go.wait()
            writer.close()

        async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            urls = SecretStr(f"json://127.0.0.1:{port}/")
            async with running(AlertSender(urls, outbox, (), timeout_seconds=0.2)) as sender:
                for _ in range(MOST_TRIES):  # on a busy machine it is given up before it asks
                    sender.send(MESSAGE)
                    await until("giving up", lambda: not outbox.waiting())
                    if asked.is_set():
                        break
                assert asked.is_set()
            assert sender.counts["JSON", "failed"] > sender.counts["JSON", "sent"] == 0
            let_go.set()

    @run_async
    async def test_mail_is_sent(self, tmp_path: Path) -> None:
        async with (
            mail_sink() as sink,
            running(
                AlertSender(
                    SecretStr(f"mailto://127.0.0.1:{sink.port}?from=a@b.test&to=c@d.test"),
                    Outbox(tmp_path),
                    pauses_seconds=(),
                    timeout_seconds=DEADLINE_SECONDS,
                )
            ) as sender,
        ):
            sender.send(MESSAGE)
            await until("the mail", lambda: sender.counts["E-Mail", "sent"] == 1)
        (mail,) = sink.mails
        assert mail["Subject"] == MESSAGE.title
        assert "c@d.test" in mail["To"]
        assert MESSAGE.body in mail.as_string()

    @run_async
    async def test_messages_without_targets_are_dropped(self, tmp_path: Path) -> None:
        async with running(AlertSender(None, Outbox(tmp_path))) as sender:
            for _ in range(1000):
                sender.send(MESSAGE)
        assert sender.counts == {}
        assert Outbox(tmp_path).waiting() == []

    @run_async
    async def test_unsent_messages_are_sent_by_the_next_process(self, tmp_path: Path) -> None:
        outbox = Outbox(tmp_path / "unsent")
        asked = asyncio.Event()

        async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.set()
            await reader.read()  # until the sender lets go
            writer.close()

        async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
            urls = SecretStr(f"json://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
            async with running(AlertSender(urls, outbox)) as sender:
                sender.send(MESSAGE)
                sender.send(MESSAGE)
                await asked.wait()
        assert len(outbox.waiting()) == 2
        async with webhook() as hook, running(AlertSender(SecretStr(hook.url), outbox)) as after:
            await until("both messages", lambda: after.counts["JSON", "sent"] == 2)
            await until("their removal", lambda: not outbox.waiting())
        assert [each["title"] for each in hook.bodies] == [MESSAGE.title] * 2


class TestOutbox:
    def test_message_is_taken_by_one_process(self, tmp_path: Path) -> None:
        box, other = Outbox(tmp_path), Outbox(tmp_path)
        box.put(MESSAGE)
        (path,) = box.waiting()
        with box.taken(path) as mine, other.taken(path) as theirs:
            assert (mine, theirs) == (MESSAGE, None)
        with other.taken(path) as late:
            assert late is None
        assert list(tmp_path.iterdir()) == []

    def test_failed_message_stays_for_the_next_process(self, tmp_path: Path) -> None:
        box = Outbox(tmp_path)
        box.put(MESSAGE)
        (path,) = box.waiting()
        with suppress(ZeroDivisionError), box.taken(path):
            raise ZeroDivisionError
        with box.taken(path) as again:
            assert again == MESSAGE

    @pytest.mark.parametrize("text", ["", '{"title": "only"}', "[]"])
    def test_unreadable_message_is_deleted(self, tmp_path: Path, text: str) -> None:
        box, path = Outbox(tmp_path), tmp_path / "1.json"
        path.write_text(text)
        with box.taken(path) as message:
            assert message is None
        assert box.waiting() == []

    def test_old_message_is_deleted_unsent(self, tmp_path: Path) -> None:
        box = Outbox(tmp_path)
        box.put(MESSAGE)
        (path,) = box.waiting()
        long_ago = path.stat().st_mtime - MOST_AGE_SECONDS - 1
        os.utime(path, (long_ago, long_ago))
        with box.taken(path) as message:
            assert message is None
        assert box.waiting() == []

    @run_async
    async def test_number_of_waiting_messages_is_limited(self, tmp_path: Path) -> None:
        outbox = Outbox(tmp_path)
        sender = AlertSender(SecretStr("json://127.0.0.1/"), outbox)
        for _ in range(MOST_WAITING + 2):
            sender.send(MESSAGE)
        assert len(outbox.waiting()) == MOST_WAITING
        assert sender.counts["any", "failed"] == 2


@dataclass
class MailSink:
    port: int = 0
    mails: list[Any] = field(default_factory=list)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 sink\r\n")
        while line := (await reader.readline()).decode().strip():
            word = line.split()[0].upper()
            if word == "DATA":
                writer.write(b"354 go on\r\n")
                await writer.drain()
                text = await reader.readuntil(b"\r\n.\r\n")
                self.mails.append(email.message_from_bytes(text, policy=email.policy.default))
            writer.write(b"221 bye\r\n" if word == "QUIT" else b"250 fine\r\n")
            await writer.drain()
            if word == "QUIT":
                break
        writer.close()


@asynccontextmanager
async def mail_sink() -> AsyncIterator[MailSink]:
    sink = MailSink()
    async with await asyncio.start_server(sink.talk, "127.0.0.1", 0) as server:
        sink.port = server.sockets[0].getsockname()[1]
        yield sink


class TestThisMachine:
    @run_async
    async def test_system_figures_of_this_machine(self) -> None:
        told = await SystemMonitor(AlertSettings(), DEADLINE_SECONDS).system()
        assert told.unavailable == {}
        assert told.cpu.cores == os.cpu_count()
        assert told.cpu.usage is not None
        assert 0 <= told.cpu.usage <= 100
        assert told.cpu.model
        memory = told.memory
        assert memory.total == (memory.used or 0) + (memory.free or 0)
        root = next(each for each in told.disk if each.mount == "/")
        assert root.size == psutil.disk_usage("/").total
        devices = [each.filesystem for each in told.disk]
        assert len(devices) == len(set(devices))
        assert {"lo"} <= {each.name for each in told.network.interfaces}
        assert told.uptime is not None
        assert told.uptime > 0
        assert told.load_average is not None
        assert len(told.load_average) == 3

    @run_async
    async def test_network_checks_of_this_machine(self) -> None:
        told = await NetworkChecks(NETWORK, (2,)).report()
        names = ["bridge", "slots", "vm_network", "default_route", "names"]
        assert [each.name for each in told.checks] == names
        for check in told.checks:
            assert check.detail
            assert (check.hint is None) == (check.status == "healthy")

    @run_async
    async def test_measure_vm_of_this_process(self, tmp_path: Path) -> None:
        (tmp_path / "serial.log").write_bytes(b"x" * 8192)
        told = await measure_vm(2, os.getpid(), tmp_path)
        assert told.cpu_seconds is not None
        assert told.cpu_seconds > 0
        assert told.memory_bytes is not None
        assert told.memory_bytes > 1 << 20
        assert told.disk_bytes is not None
        assert told.disk_bytes >= 8192
        assert set(told.unavailable) <= {"network"}


@asynccontextmanager
async def service(folder: Path) -> AsyncIterator[Served]:
    settings = ControllerSettings(
        database_url=f"sqlite+aiosqlite:///{folder / 'controller.sqlite3'}",
        slots=(2, 3),
        vm_root=folder / "vms",
        jwt_secret=SecretStr(JWT_SECRET),
    )
    copy_migrated_database(folder / "controller.sqlite3")
    async with served(settings, StillHypervisor(folder / "vms")) as made:
        yield made


@run_async
async def test_full_disk_alert_is_sent_once_when_raised_and_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checks the whole path: figures of the host, database, webhook."""
    used = 95
    usage = lambda _mount: SimpleNamespace(total=100, used=used, free=100 - used)  # noqa: E731
    monkeypatch.setattr(psutil, "disk_usage", usage)
    monkeypatch.setattr(psutil, "disk_partitions", lambda all=False: [ROOT])
    async with webhook() as hook, service(tmp_path) as api:
        settings = api.services.settings.model_copy(
            update={
                "alert_urls": SecretStr(hook.url),
                # High limits, since this machine may be busy.
                "alert": AlertSettings(warning_percent=94, critical_percent=100, for_seconds=0),
                "samples": Sampling(every_seconds=0.05),
            }
        )

        def about_disks() -> list[str]:
            titles = [str(each["title"]) for each in hook.bodies]
            return [title.split()[0] for title in titles if title.endswith(": disk")]

        async with sampling(settings, api, tmp_path) as sampler:
            await until("the alert", lambda: about_disks() == ["[warning]"])
            unsent = Outbox(unsent_folder(settings))
            await until("its being known as sent", lambda: not unsent.waiting())
        async with sampling(settings, api, tmp_path) as sampler:
            await until("samples after a restart", lambda: sampler.latest is not None)
            used = 10
            await until("its end", lambda: about_disks() == ["[warning]", "[cleared]"])
        assert [
            each.rule for each in await api.services.alerts.standing() if each.rule == "disk"
        ] == []


@asynccontextmanager
async def sampling(
    settings: ControllerSettings, api: Served, folder: Path
) -> AsyncIterator[SampleLoop]:
    services = api.services
    sampler = SampleLoop(
        settings,
        services.database,
        services.vms,
        services.sessions,
        services.hypervisor,
        deployments_folder=folder / "deployments",
    )
    task = asyncio.create_task(sampler.run())
    try:
        yield sampler
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


class TestEndpoints:
    @run_async
    async def test_endpoints_have_documented_fields(self, tmp_path: Path) -> None:
        async with service(tmp_path) as api:
            told = {}
            for name in ENDPOINTS:
                answer = await api.ask("GET", f"/api/admin/health/{name}", "admin")
                assert answer.status_code == 200, answer.text
                told[name] = answer.json()
        assert {"status", "cpu", "memory", "disk", "network", "uptime", "load_average"} <= set(
            told["system"]
        )
        assert set(told["cpu"]) == {"status", "usage", "cores", "model"}
        assert set(told["memory"]) == {"status", "total", "used", "free", "percent"}
        assert set(told["disk"]["disk"][0]) == {
            "status",
            "filesystem",
            "size",
            "used",
            "available",
            "percent",
            "mount",
        }
        assert set(told["network"]["interfaces"][0]) == {
            "name",
            "status",
            "rx_bytes",
            "tx_bytes",
            "rx_bytes_per_second",
            "tx_bytes_per_second",
        }
        has_sensor = "temperature" in told["system"]
        assert (told["temperature"]["current"] is not None) == has_sensor
        assert has_sensor or told["temperature"]["detail"]
        assert {"status", "checks"} == set(told["network-health"])

    @run_async
    async def test_endpoints_are_for_operators_only(self, tmp_path: Path) -> None:
        paths = [f"/api/admin/health/{name}" for name in (*ENDPOINTS, "history")]
        async with service(tmp_path) as api:
            for path in (*paths, "/api/admin/alerts"):
                for caller, status in (("nobody", 401), ("user", 403), ("operator", 200)):
                    assert (await api.ask("GET", path, caller)).status_code == status, path

    @run_async
    async def test_history_returns_requested_span(self, tmp_path: Path) -> None:
        async with service(tmp_path) as api:
            at = now()
            for hours in range(4):
                earlier = at - timedelta(hours=hours)
                await api.services.samples.add(earlier, {"cpu": float(hours), "new": 1})
            path = "/api/admin/health/history"
            told = (await api.ask("GET", path, "admin")).json()["samples"]
            assert [each["cpu"] for each in told] == [3, 2, 1, 0]
            told = (await api.ask("GET", f"{path}?hours=2.5", "admin")).json()["samples"]
            assert [each["cpu"] for each in told] == [2, 1, 0]
            told = (await api.ask("GET", f"{path}?points=1", "admin")).json()["samples"]
            assert [each["cpu"] for each in told] == [0]
            for query in ("hours=0", "hours=nan", "hours=inf", "points=0", "points=x"):
                assert (await api.ask("GET", f"{path}?{query}", "admin")).status_code == 422, query

    @run_async
    async def test_history_returns_samples_as_stored(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with service(tmp_path) as api:
            monkeypatch.setattr(api.services.sample_loop, "_leads", lambda: True)
            sample = await api.services.sample_loop.sample_once()
            (told,) = (await api.ask("GET", "/api/admin/health/history", "admin")).json()["samples"]
        assert told.pop("at")
        assert told.pop("starts") == {}
        assert told == sample.model_dump(mode="json")

    @run_async
    async def test_alerts_lists_standing_and_history(self, tmp_path: Path) -> None:
        async with service(tmp_path) as api:
            alerts = api.services.alerts
            await alerts.raise_("disk", "/", "warning", "disk / is at 75 %", 75.0)
            await alerts.raise_("cpu", "host", "critical", "CPU is at 95 %", 95.0)
            await alerts.clear("disk", "/")
            told = (await api.ask("GET", "/api/admin/alerts", "admin")).json()
            assert [each["rule"] for each in told["standing"]] == ["cpu"]
            assert [each["rule"] for each in told["history"]] == ["cpu", "disk"]
            assert set(told["standing"][0]) == {
                "id",
                "rule",
                "subject",
                "severity",
                "message",
                "value",
                "raised_at",
                "cleared_at",
            }
            few = (await api.ask("GET", "/api/admin/alerts?limit=1", "admin")).json()
            assert len(few["history"]) == 1

    @run_async
    async def test_openapi_describes_the_status_of_the_host(self, tmp_path: Path) -> None:
        async with service(tmp_path) as api:
            described = (await api.ask("GET", "/openapi.json", "admin")).json()
            metrics = (await api.ask("GET", "/metrics", "operator")).text
        schemas = described["components"]["schemas"]
        assert {"usage", "cores", "model"} <= set(schemas["CpuStatus"]["properties"])
        assert {"temperature", "load_average"} <= set(schemas["SystemStatus"]["properties"])
        assert "temperature" not in schemas["SystemStatus"]["required"]
        assert "polydev_alerts_standing" in metrics


def test_hung_resolver_is_called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go, asked = threading.Event(), []

    def hang(*_words: Any, **_more: Any) -> list[Any]:
        asked.append(1)
        let_go.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)

    async def ask() -> list[str]:
        probe = NetworkChecks(NETWORK, (), timeout_seconds=0.05)
        reports = [await probe.report() for _ in range(3)]
        let_go.set()
        return [each.checks[-1].status for each in reports]

    assert asyncio.run(ask()) == ["critical"] * 3
    assert len(asked) == 1

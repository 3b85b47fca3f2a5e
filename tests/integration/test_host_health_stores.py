"""Samples and alerts on both databases, and the sampler that fills them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.exc import SQLAlchemyError

from polydev.controller.database import create_engine
from polydev.controller.host.alert_outbox import AlertMessage, Outbox
from polydev.controller.host.alert_sender import AlertSender
from polydev.controller.host.prometheus import HostCollector
from polydev.controller.host.sample_loop import SampleLoop
from polydev.controller.settings import AlertSettings, ControllerSettings, Sampling
from polydev.controller.store.alerts import Alerts
from polydev.controller.store.host_samples import HostSamples
from polydev.controller.store.sessions import NewSession, Sessions
from polydev.controller.store.transactions import Database
from polydev.controller.store.usage import Usage
from polydev.controller.store.users import Users
from polydev.controller.store.vm_slots import sync_slots
from polydev.controller.store.vms import Vms
from tests.stores import DIGEST, NETWORK, Clock, run_async

pytest_plugins = ["tests.databases"]

START = datetime(2026, 11, 21, 10, 0, tzinfo=timezone.utc)
SAMPLING = Sampling(every_seconds=10)
IDLE = SimpleNamespace(_fields=("user", "idle"), user=0.0, idle=0.0)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    database = Database(create_engine(url))
    try:
        yield database
    finally:
        await database.close()


class TestSamples:
    @run_async
    async def test_samples_are_thinned_over_a_day(self, store_url: str) -> None:
        async with opened(store_url) as database:
            samples = HostSamples(database)
            for minutes in (0, 60 * 22, 60 * 23, 60 * 23 + 30, 60 * 24):
                for seconds in range(0, 120, 10):
                    at = START + timedelta(minutes=minutes, seconds=seconds)
                    await samples.add(at, {"cpu": seconds, "unavailable": {}})
            at = START + timedelta(hours=24, minutes=1, seconds=50)
            removed = await samples.thin(SAMPLING, at)
            found = await samples.between(START - timedelta(days=1), at + timedelta(days=1))
            assert await samples.thin(SAMPLING, at) == 0, "thinned already"
        minutes_after = [(each - START).total_seconds() / 60 for each, _ in found]
        assert removed + len(found) == 60
        # Older than a day: deleted. Older than an hour: one a minute is kept. Newer: all are kept.
        expected = [60 * 22.0, 60 * 22 + 1.0, 60 * 23.0, 60 * 23 + 1.0, 60 * 23 + 11 / 6]
        expected += [60 * 23 + 30 + tenth / 6 for tenth in range(12)]
        expected += [60 * 24 + tenth / 6 for tenth in range(12)]
        assert minutes_after == pytest.approx([11 / 6, *expected])

    @run_async
    async def test_limited_points_are_the_last_of_each_interval(self, store_url: str) -> None:
        async with opened(store_url) as database:
            samples = HostSamples(database)
            for number in range(8):
                await samples.add(START + timedelta(seconds=number), {"cpu": number})
            end = START + timedelta(seconds=8)
            assert [each["cpu"] for _, each in await samples.between(START, end, 4)] == [1, 3, 5, 7]
            assert [each["cpu"] for _, each in await samples.between(START, end, 99)] == [*range(8)]
            later = START + timedelta(seconds=6)
            assert [each["cpu"] for _, each in await samples.between(later, end)] == [6, 7]
            assert await samples.between(end, end + timedelta(days=1), 5) == []

    @run_async
    async def test_sample_of_same_time_replaces_the_former(self, store_url: str) -> None:
        async with opened(store_url) as database:
            samples = HostSamples(database)
            await samples.add(START, {"cpu": 1})
            await samples.add(START, {"cpu": 2})
            (found,) = await samples.between(START, START + timedelta(seconds=1))
        assert found == (START, {"cpu": 2})


class TestAlerts:
    @run_async
    async def test_alert_is_raised_changed_and_cleared(self, store_url: str) -> None:
        clock = Clock(START)
        async with opened(store_url) as database:
            alerts = Alerts(database, clock)
            raised = await alerts.raise_("disk", "/", "warning", "at 75 %", 75.0)
            assert raised is not None
            assert (raised.raised_at, raised.cleared_at) == (START, None)
            assert await alerts.raise_("disk", "/", "warning", "at 76 %", 76.0) is None
            clock.pass_seconds(60)
            worse = await alerts.raise_("disk", "/", "critical", "at 95 %", 95.0)
            assert worse is not None
            assert (worse.id, worse.severity, worse.raised_at) == (raised.id, "critical", START)
            assert await alerts.standing() == [worse]
            cleared = await alerts.clear("disk", "/")
            assert cleared is not None
            assert cleared.cleared_at == clock.at
            assert await alerts.clear("disk", "/") is None
            assert await alerts.standing() == []
            again = await alerts.raise_("disk", "/", "warning", "at 71 %", None)
            assert again is not None
            assert await alerts.history(START) == [again, cleared]
            assert await alerts.history(START, limit=1) == [again]
            assert await alerts.history(clock.at + timedelta(seconds=1)) == [again]
            assert await alerts.prune(clock.at + timedelta(seconds=1)) == 1
            assert await alerts.history(START) == [again]

    @run_async
    async def test_alert_is_raised_once_by_concurrent_processes(self, store_url: str) -> None:
        async with opened(store_url) as one, opened(store_url) as other:
            done = await asyncio.gather(
                *(
                    Alerts(database).raise_("cpu", "host", "warning", "at 75 %", 75.0)
                    for database in (one, other) * 4
                )
            )
            assert len([each for each in done if each is not None]) == 1
            assert len(await Alerts(one).standing()) == 1


class Host:
    """A host with two slots whose figures a test sets."""

    def __init__(
        self, database: Database, folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.database, self.clock, self.monkeypatch = database, clock, monkeypatch
        self.memory = 10
        self.leads = True
        self.sent: list[AlertMessage] = []
        self.deployments = folder / "deployments"
        self.deployments.mkdir()
        self.settings = ControllerSettings(slots=(2, 3), vm_network=NETWORK, alert=AlertSettings())
        self.vms = Vms(database, self.settings.session, clock)
        self.sessions = Sessions(database, self.settings.session, clock)
        self.sampler = self.begin()

    def begin(self) -> SampleLoop:
        """Return the sampler of a restarted controller."""
        sender = AlertSender(None, Outbox(self.deployments))
        self.monkeypatch.setattr(sender, "send", self.sent.append)
        return SampleLoop(
            self.settings,
            self.database,
            self.vms,
            self.sessions,
            None,
            leads=lambda: self.leads,
            deployments_folder=self.deployments,
            sender=sender,
            clock=self.clock,
        )

    async def pass_samples(self, count: int) -> None:
        for _ in range(count):
            self.clock.pass_seconds(10)
            await self.sampler.sample_once()

    async def start_session(self) -> str:
        user = await Users(self.database).add("user")
        session, _ = await self.sessions.start(NewSession(user.id, "claude", DIGEST))
        return session.vm_id

    @property
    def titles(self) -> list[str]:
        return [each.title.split()[0] + " " + each.title.split(": ")[1] for each in self.sent]


@asynccontextmanager
async def host_of(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Host]:
    async with opened(url) as database:
        host = Host(database, folder, Clock(START), monkeypatch)
        await sync_slots(database, host.settings.slots, NETWORK)
        memory = lambda: SimpleNamespace(total=100, available=100 - host.memory)  # noqa: E731
        monkeypatch.setattr(psutil, "virtual_memory", memory)
        monkeypatch.setattr("polydev.controller.host.system_monitor.SHORTEST_SPAN_SECONDS", 0)
        monkeypatch.setattr(psutil, "cpu_times", lambda: IDLE)
        monkeypatch.setattr(
            psutil,
            "disk_partitions",
            lambda all=False: [SimpleNamespace(device="d", mountpoint="/", fstype="ext4")],
        )
        usage = SimpleNamespace(total=100, used=10, free=90)
        monkeypatch.setattr(psutil, "disk_usage", lambda _mount: usage)
        yield host


class TestSampler:
    @run_async
    async def test_sample_is_stored_as_measured(
        self, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with host_of(store_url, tmp_path, monkeypatch) as host:
            await host.start_session()
            host.clock.pass_seconds(1)
            sample = await host.sampler.sample_once()
            ((at, kept),) = await HostSamples(host.database).between(
                START, START + timedelta(days=1)
            )
        assert at == host.clock.at
        assert kept == sample.model_dump(mode="json")
        assert kept["memory"] == 10.0
        assert kept["disk"] == {"/": 10.0}
        assert kept["slots"] == {"total": 2, "held": 1, "pooled": 0, "primed": 0}
        assert kept["sessions"]["vm_creating"] == 1
        assert kept["vms"] == {"creating": 1, "starting": 0, "ready": 0, "stopping": 0}

    @run_async
    async def test_one_message_when_raised_and_one_when_cleared(
        self, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with host_of(store_url, tmp_path, monkeypatch) as host:
            host.memory = 95
            await host.pass_samples(6)
            assert host.titles == ["[critical] memory"]
            assert [each.rule for each in host.sampler.standing] == ["memory"]
            host.sampler = host.begin()
            await host.pass_samples(6)
            assert len(host.sent) == 1, "it was told before the restart"
            host.memory = 10
            await host.pass_samples(6)
            assert host.titles == ["[critical] memory", "[cleared] memory"]
            assert host.sampler.standing == []
            (past,) = await Alerts(host.database).history(START)
        assert past.cleared_at is not None

    @run_async
    async def test_alerts_for_slots_boots_and_deployments(
        self, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with host_of(store_url, tmp_path, monkeypatch) as host:
            record = host.deployments / "20261121_101500-07af4b7.json"
            record.write_text(json.dumps({"id": record.stem, "status": "rolled-back"}))
            vms = [await host.start_session(), await host.start_session()]
            await host.pass_samples(4)
            assert sorted(host.titles) == ["[warning] deploy failed", "[warning] no slots"]
            for vm_id in vms:
                await host.vms.fail(vm_id, "it panicked")
                await host.vms.released(vm_id)
            third = await host.start_session()
            await host.vms.fail(third, "it panicked")
            await host.vms.released(third)
            await host.pass_samples(1)
            assert host.titles[2:] == ["[critical] failed boots"]
            record.write_text(json.dumps({"id": record.stem, "status": "succeeded"}))
            await host.pass_samples(4)
            assert set(host.titles[3:]) == {"[cleared] no slots", "[cleared] deploy failed"}
            host.clock.pass_seconds(host.settings.alert.failed_boots_seconds)
            await host.pass_samples(1)
            assert host.titles[5:] == ["[cleared] failed boots"]

    @run_async
    async def test_alert_for_vm_that_failed_while_ready(
        self, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with host_of(store_url, tmp_path, monkeypatch) as host:
            vm_id = await host.start_session()
            await host.vms.launched(vm_id)
            await host.vms.ready(vm_id)
            assert await host.vms.failed_while_up(START, START) == 0
            await host.vms.fail(vm_id, "three health checks failed")
            assert await host.vms.failed_while_up(START, START) == 1
            host.clock.pass_seconds(5)
            await host.vms.released(vm_id)
            assert await host.vms.failed_while_up(START, START) == 1
            later = START + timedelta(minutes=1)
            assert await host.vms.failed_while_up(later, START) == 0
            await host.pass_samples(4)
            assert host.titles == ["[warning] unhealthy vms"]

    @run_async
    async def test_process_without_lead_stores_and_sends_nothing(
        self, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with host_of(store_url, tmp_path, monkeypatch) as host:
            host.memory, host.leads = 95, False
            await host.pass_samples(6)
            assert host.sent == []
            assert await HostSamples(host.database).between(START, START + timedelta(days=1)) == []
            assert await Alerts(host.database).standing() == []
            assert host.sampler.latest is not None

    @run_async
    async def test_usage_is_counted_by_the_leading_process(
        self, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with host_of(store_url, tmp_path, monkeypatch) as host:
            vm_id = await host.start_session()
            session = await host.sessions.of_vm(vm_id)
            assert session is not None
            await host.vms.launched(vm_id)
            host.leads = False
            await host.pass_samples(2)
            usage = Usage(host.database, host.settings.quotas)
            assert (await usage.days(START.date()))[session.user_id][START.date()].vm_seconds == 0
            host.leads = True
            await host.pass_samples(1)
            assert (await usage.days(START.date()))[session.user_id][START.date()].vm_seconds == 30
            host.clock.pass_seconds((host.settings.keep_usage_days + 1) * 24 * 3600)
            host.sampler = host.begin()
            await host.pass_samples(1)
            assert START.date() not in (await usage.days(START.date()))[session.user_id]

    @run_async
    async def test_host_is_measured_without_database(
        self, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with host_of(store_url, tmp_path, monkeypatch) as host:

            async def fails() -> Any:
                raise SQLAlchemyError("down")

            monkeypatch.setattr(host.vms, "held", fails)
            with pytest.raises(SQLAlchemyError):
                await host.sampler.sample_once()
            assert host.sampler.latest is not None
            assert host.sampler.latest.memory == 10.0
            registry = CollectorRegistry()
            registry.register(HostCollector(host.sampler))
            names = {
                each.name
                for each in text_string_to_metric_families(generate_latest(registry).decode())
            }
        assert "polydev_host_memory_percent" in names
        assert "polydev_slots" not in names

    @run_async
    async def test_prometheus_metrics_of_samples_and_alerts(
        self, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with host_of(store_url, tmp_path, monkeypatch) as host:
            registry = CollectorRegistry()
            registry.register(HostCollector(host.sampler))
            assert host.sampler.latest is None
            generate_latest(registry)
            host.memory = 95
            await host.start_session()
            await host.pass_samples(4)
            text = generate_latest(registry).decode()
        samples = {
            (each.name, tuple(sorted(each.labels.items()))): each.value
            for family in text_string_to_metric_families(text)
            for each in family.samples
        }
        assert samples["polydev_host_memory_percent", ()] == 95.0
        assert samples["polydev_host_disk_percent", (("mount", "/"),)] == 10.0
        assert samples["polydev_slots", ()] == 2
        assert samples["polydev_slots_held", ()] == 1
        assert samples["polydev_slots_pooled", ()] == 0
        assert samples["polydev_sessions", (("state", "vm_creating"),)] == 1
        assert samples["polydev_sessions", (("state", "authenticated"),)] == 0
        standing = (("rule", "memory"), ("severity", "critical"))
        assert samples["polydev_alerts_standing", standing] == 1

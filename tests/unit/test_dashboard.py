"""The host's page: formats of figures, colours, columns of charts, and escaping of texts."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from polydev.controller.entities import now
from polydev.controller.host import processes
from polydev.controller.host.charts import GAP_SECONDS, chart_columns
from polydev.controller.host.history_cache import HistoryCache, LastDay
from polydev.controller.host.network_checks import NetworkChecks
from polydev.controller.host.processes import Process
from polydev.controller.host.sample import Sample, SlotCounts
from polydev.controller.host.system_status import (
    CpuStatus,
    DiskStatus,
    MemoryStatus,
    NetworkCheck,
    NetworkHealth,
    NetworkStatus,
    SystemStatus,
    TemperatureStatus,
    status_of_percent,
)
from polydev.controller.settings import AlertSettings, Sampling
from polydev.controller.store.session_start_times import SessionStart
from polydev.controller.web import dashboard_page
from polydev.controller.web.dashboard_bars import bars_of
from polydev.controller.web.dashboard_rows import process_rows
from polydev.controller.web.dashboard_values import banner, headline, view_of
from polydev.controller.web.formatting import exact_percent_text, rate_text
from tests.api import ApiHost, Served, api_host
from tests.pages import browser

SCRIPT = "<script>alert(1)</script>"
START = datetime(2026, 11, 21, 10, 0, tzinfo=timezone.utc)


def system(
    cpu: float | None = 5,
    disks: Sequence[DiskStatus] = (),
    temperature: TemperatureStatus | None = None,
) -> SystemStatus:
    status = "unknown" if cpu is None else status_of_percent(cpu, AlertSettings())
    return SystemStatus(
        status="healthy",
        cpu=CpuStatus(status=status, usage=cpu, cores=4, detail="broken" if cpu is None else None),
        memory=MemoryStatus(status="healthy", percent=40, used=4 << 30, total=10 << 30),
        disk=list(disks),
        network=NetworkStatus(status="healthy", interfaces=[]),
        temperature=temperature,
        uptime=1.0,
        load_average=None,
    )


# charts.test.mjs tests the same values in the script of the charts.
RATES = json.loads((Path(__file__).parent / "scripts" / "rates.json").read_text())


@pytest.mark.parametrize(("rate", "words"), [(None, "\N{EN DASH}"), *RATES])
def test_rate_text_has_units(rate: float | None, words: str) -> None:
    assert rate_text(rate) == words


def test_exact_percent_text_is_not_rounded() -> None:
    words = [exact_percent_text(each) for each in (90.1, 40, None)]
    assert words == ["90.1 %", "40 %", "\N{EN DASH}"]


class TestBars:
    @pytest.mark.parametrize(
        ("percent", "level", "word"),
        [
            (69, "good", "fine"),
            (70, "warn", "high"),
            (90, "warn", "high"),
            (91, "bad", "very high"),
            (None, "unknown", "unknown"),
        ],
    )
    def test_bar_level_and_word(self, percent: float | None, level: str, word: str) -> None:
        bar = bars_of(system(cpu=percent))[0]
        assert (bar.level, bar.word, bar.percent) == (level, word, percent)

    def test_bar_figures(self) -> None:
        cpu, memory, disk = bars_of(
            system(
                disks=[
                    DiskStatus(status="unknown", detail="no answer", filesystem="d", mount="/data")
                ]
            )
        )
        assert cpu.figures == "of 4 cores"
        assert (memory.value, memory.figures) == ("40 %", "4.0 GiB of 10.0 GiB")
        assert (disk.label, disk.percent, disk.figures) == ("Disk /data", None, "no answer")

    @pytest.mark.parametrize(
        ("celsius", "status", "level"),
        [(80, "healthy", "good"), (81, "warning", "bad"), (100, "critical", "bad")],
    )
    def test_temperature_bar_is_red_above_80_percent_of_critical(
        self, celsius: float, status: Any, level: str
    ) -> None:
        heat = TemperatureStatus(status=status, current=celsius, critical=100)
        bar = bars_of(system(temperature=heat))[-1]
        assert (bar.level, bar.percent, bar.value) == (level, celsius, f"{celsius} °C")

    def test_temperature_without_a_critical_value_has_no_bar(self) -> None:
        bar = bars_of(system(temperature=TemperatureStatus(status="healthy", current=50)))[-1]
        assert (bar.percent, bar.figures) == (None, "the sensor has no critical value")

    def test_banner_names_values_above_the_limit(self) -> None:
        assert banner(bars_of(system(cpu=90)), 90) == ""
        assert banner(bars_of(system(cpu=95)), 90) == "Above 90 %: CPU 95 %"

    def test_headline_counts_findings(self) -> None:
        assert headline("healthy", 0) == "All is well"
        assert headline("critical", 1) == "1 thing needs attention"
        assert headline("warning", 3) == "3 things need attention"
        assert headline("unknown", 2) == "2 things cannot be measured"


def test_process_rows_name_their_owner() -> None:
    process = Process(1, "qemu", None, 1.5, 1 << 20, "vm", "microvm@3.service", 3)
    found = process_rows(
        [
            process,
            replace(process, belongs_to="controller", slot=None),
            replace(process, belongs_to="other", unit="ssh.service", slot=None),
            replace(process, belongs_to="other", unit=None, user="root", slot=None),
        ]
    )
    assert [each.owner for each in found] == [
        "VM in slot 3",
        "the controller",
        "ssh.service",
        "user root",
    ]
    assert (found[0].cpu, found[0].memory) == ("1.5 %", "1.0 MiB")


class TestCharts:
    def at(self, seconds: float) -> datetime:
        return START + timedelta(seconds=seconds)

    def test_chart_columns_of_samples(self) -> None:
        samples = [
            (
                self.at(10 * number),
                Sample(
                    cpu=float(number),
                    disk={"/": 40.0},
                    rx_bytes={"eth0": 100 * number, "eth1": 50 * number, "br-vm": 9000 * number},
                    slots=SlotCounts(total=8, held=number),
                    sessions={"vm_creating": 1, "vm_created": number},
                ),
            )
            for number in range(3)
        ]
        columns = chart_columns(LastDay(samples, [SessionStart(self.at(15), "pool", 0.5)]))
        assert columns["at"] == [1795255200 + 10 * number for number in range(3)]
        assert columns["cpu_percent"] == [0.0, 1.0, 2.0]
        assert columns["disk_percent[/]"] == [40.0] * 3
        assert columns["received_bytes_per_second"] == [None, 15.0, 15.0]
        assert columns["sessions"] == [1, 2, 3]
        assert columns["sessions_starting"] == [1, 1, 1]
        assert columns["start_median_seconds[pool]"] == [None, None, 0.5]
        assert not {"temperature_celsius", "start_median_seconds[boot]"} & set(columns)
        assert {len(values) for values in columns.values()} == {3}

    def test_chart_lines_break_where_samples_are_missing(self) -> None:
        samples = [(self.at(0), Sample(cpu=1)), (self.at(GAP_SECONDS + 1), Sample(cpu=2))]
        assert chart_columns(LastDay(samples, ()))["cpu_percent"] == [1.0, None, 2.0]

    def test_chart_columns_without_samples(self) -> None:
        assert chart_columns(LastDay((), ())) == {"at": []}


@pytest.fixture
def host(migrated: Path, tmp_path: Path) -> ApiHost:
    return api_host(migrated, tmp_path, slots=(2, 3))


def test_history_cache_reads_only_new_samples(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        services, clock = asked.services, SimpleNamespace(at=now())
        recent = HistoryCache(
            services.samples, services.session_starts, Sampling(), lambda: clock.at
        )
        read: list[datetime] = []
        portions = services.samples.portions

        def noted(start: datetime, *words: Any) -> Any:
            read.append(start)
            return portions(start, *words)

        services.samples.portions = noted  # type: ignore[assignment,method-assign]
        for seconds in range(7400, 0, -10):
            earlier = clock.at - timedelta(seconds=seconds)
            await services.samples.add(earlier, {"cpu": 1.0, "vm": []})
        first = await recent.day()
        whole = [at for at, _ in first.samples if at >= clock.at - timedelta(hours=1)]
        assert len(whole) == 360
        assert 60 <= len(first.samples) - len(whole) <= 65, "the older hour is thinned out"
        await services.samples.add(clock.at, {"cpu": 2.0})
        clock.at += timedelta(seconds=10)
        second = await recent.day()
        assert second.samples[-1][1].cpu == 2.0
        assert read[1] > first.samples[-1][0], "only what is new was read"
        clock.at += timedelta(hours=25)
        assert (await recent.day()).samples == []

    host.run(scenario)


@pytest.fixture
def kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that viewers share are not made again, however slowly a test goes on."""
    for name in ("FRESH_SECONDS", "CHARTS_FRESH_SECONDS"):
        monkeypatch.setattr(dashboard_page, name, inf)


class TestPages:
    def test_page_has_live_parts_and_charts(self, host: ApiHost) -> None:
        async def scenario(asked: Served) -> None:
            looks = await browser(asked, "operator")
            await asked.services.samples.add(now(), {"cpu": 12.0})
            page = (await looks.ask("GET", "/admin")).text
            assert "<h1>Host " in page
            live = await looks.ask("GET", "/admin/live")
            for name in ("status", "findings", "bars", "sessions", "network", "processes"):
                assert f'<div id="part-{name}"' in page
                assert f'<div id="part-{name}" hx-swap-oob="innerHTML">' in live.text
            charts = await looks.ask("GET", "/admin/charts.json")
            assert json.loads(charts.text)["cpu_percent"] == [12.0]

        host.run(scenario)

    @pytest.mark.usefixtures("kept_for_ever")
    @pytest.mark.parametrize("path", ["/admin/live", "/admin/charts.json"])
    def test_shared_answers_are_gzipped_if_accepted(self, host: ApiHost, path: str) -> None:
        async def scenario(asked: Served) -> None:
            looks = await browser(asked, "operator")
            plain = await looks.ask("GET", path, {"Accept-Encoding": "identity"})
            zipped = await looks.ask("GET", path, {"Accept-Encoding": "gzip"})
            assert "content-encoding" not in plain.headers
            assert zipped.headers["content-encoding"] == "gzip"
            assert zipped.headers["vary"] == "Accept-Encoding"
            assert zipped.headers["cache-control"] == "no-store"
            assert zipped.content == plain.content

        host.run(scenario)

    @pytest.mark.usefixtures("kept_for_ever")
    def test_live_parts_are_rendered_once_for_all_viewers(
        self, host: ApiHost, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = []

        def noted(*words: Any) -> Any:
            made.append(words)
            return view_of(*words)

        monkeypatch.setattr(dashboard_page, "view_of", noted)

        async def scenario(asked: Served) -> None:
            looks = [await browser(asked, caller) for caller in ("operator", "admin")]
            asking = [each.ask("GET", "/admin/live") for each in looks * 20]
            answers = await asyncio.gather(*asking)
            assert {each.status_code for each in answers} == {200}
            assert len({each.content for each in answers}) == 1

        host.run(scenario)
        assert len(made) == 1

    def test_scripts_in_names_are_escaped(
        self, host: ApiHost, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        disk = SimpleNamespace(device="d", mountpoint=f"/{SCRIPT}", fstype="ext4")
        monkeypatch.setattr(psutil, "disk_partitions", lambda all=False: [disk])
        usage = SimpleNamespace(total=100, used=95, free=5)
        monkeypatch.setattr(psutil, "disk_usage", lambda _mount: usage)
        up = SimpleNamespace(isup=True, flags="up")
        counters = SimpleNamespace(bytes_recv=1, bytes_sent=1)
        monkeypatch.setattr(psutil, "net_if_stats", lambda: {SCRIPT: up})
        monkeypatch.setattr(psutil, "net_io_counters", lambda **_: {SCRIPT: counters})
        monkeypatch.setattr(processes, "process_times", named_script(processes.process_times))

        async def report(_probe: NetworkChecks) -> NetworkHealth:
            check = NetworkCheck(name=SCRIPT, status="critical", detail=SCRIPT, hint=SCRIPT)
            return NetworkHealth(status="critical", checks=[check])

        monkeypatch.setattr(NetworkChecks, "report", report)

        async def scenario(asked: Served) -> None:
            await asked.services.alerts.raise_("disk", SCRIPT, "critical", SCRIPT, None)
            looks = await browser(asked, "operator")
            page = (await looks.ask("GET", "/admin")).text
            live = (await looks.ask("GET", "/admin/live")).text
            for shown in (page, live):
                assert SCRIPT not in shown
                assert "&lt;script&gt;alert(1)" in shown

        host.run(scenario)


def named_script(read: Any) -> Any:
    """Give every process a name that is a script."""
    return lambda *words: replace(read(*words), name=SCRIPT)


def test_gzipped_content_can_be_decompressed(host: ApiHost) -> None:
    async def scenario(asked: Served) -> None:
        looks = await browser(asked, "operator")
        headers = {"Accept-Encoding": "gzip", "Cookie": f"polydev={looks.cookie}"}
        async with asked.client.stream("GET", "/admin/live", headers=headers) as answer:
            raw = b"".join([part async for part in answer.aiter_raw()])
        assert b"part-status" in gzip.decompress(raw)

    host.run(scenario)

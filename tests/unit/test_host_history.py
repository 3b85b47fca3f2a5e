"""The history as rows: rates, session starts, columns, and escaping in files."""

from __future__ import annotations

import csv
import io
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from polydev.controller.host.history import columns_of, rows, starts_by_span, without_vms
from polydev.controller.host.history_export import csv_line, file_name
from polydev.controller.host.psutil_reader import rate
from polydev.controller.host.sample import Sample, SlotCounts, VmSample
from polydev.controller.store.session_start_times import SessionStart, StartKind

START = datetime(2026, 11, 21, 10, 0, tzinfo=timezone.utc)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def start(seconds: float, took: float, how: StartKind = "pool") -> SessionStart:
    return SessionStart(at(seconds), how, took)


class TestStarts:
    def test_start_belongs_to_the_sample_at_the_end_of_its_span(self) -> None:
        spans = starts_by_span([at(0), at(10), at(20)], [start(0, 1), start(10, 2), start(10.1, 3)])
        assert [{how: found.max_seconds for how, found in span.items()} for span in spans] == [
            {"pool": 1},
            {"pool": 2},
            {"pool": 3},
        ]

    def test_starts_have_median_and_maximum_by_kind(self) -> None:
        some = [start(1, 0.2), start(2, 0.4), start(3, 3.0), start(4, 30, "boot")]
        (span,) = starts_by_span([at(10)], some)
        assert {how: found.model_dump() for how, found in span.items()} == {
            "pool": {"count": 3, "median_seconds": 0.4, "max_seconds": 3.0},
            "boot": {"count": 1, "median_seconds": 30.0, "max_seconds": 30.0},
        }

    def test_starts_after_the_last_sample_are_not_counted_yet(self) -> None:
        assert starts_by_span([at(10)], [start(11, 1)]) == [{}]

    def test_thinned_samples_keep_all_starts(self) -> None:
        some = [start(seconds, 1) for seconds in range(1, 61)]
        thinned = starts_by_span([at(0), at(60)], some)
        assert thinned[1]["pool"].count == 60


class TestRates:
    @pytest.mark.parametrize(
        ("value", "earlier", "seconds", "expected"),
        [
            (300, 100, 10, 20.0),
            (100, 100, 10, 0.0),
            (5, 100, 10, None),
            (5, None, 10, None),
            (5, 1, 0, None),
        ],
    )
    def test_rate_of_a_counter(
        self, value: int, earlier: int | None, seconds: float, expected: float | None
    ) -> None:
        assert rate(value, earlier, seconds) == expected

    def test_rates_in_rows(self) -> None:
        samples = [
            (at(0), Sample(rx_bytes={"eth0": 1000}, tx_bytes={"eth0": 1})),
            (at(10), Sample(rx_bytes={"eth0": 3000}, tx_bytes={"eth0": 0})),
        ]
        first, second = rows(samples, ())
        assert first["received_bytes_per_second[eth0]"] is None
        assert second["received_bytes_per_second[eth0]"] == 200.0
        assert second["sent_bytes_per_second[eth0]"] is None
        (alone,) = rows(samples[1:], (), before=samples[0])
        assert alone["received_bytes_per_second[eth0]"] == 200.0


class TestRows:
    SAMPLE = Sample(
        cpu=12.5,
        memory=40.0,
        disk={"/": 41.0},
        slots=SlotCounts(total=8, held=3, pooled=2, primed=1),
        sessions={"vm_created": 1},
        unavailable={"temperature": "broken"},
    )

    def test_row_has_a_value_for_each_column(self) -> None:
        (row,) = rows([(at(0), self.SAMPLE)], [start(-1, 0.5)])
        assert row["at"] == "2026-11-21T10:00:00Z"
        assert (row["cpu_percent"], row["disk_percent[/]"]) == (12.5, 41.0)
        assert (row["slots_held"], row["pool_primed_vms"]) == (3, 1)
        assert (row["sessions_vm_created"], row["sessions_oauth_pending"]) == (1, None)
        assert (row["starts_pool"], row["start_median_seconds[pool]"]) == (1, 0.5)
        assert (row["starts_boot"], row["start_max_seconds[boot]"]) == (0, None)
        assert row["unavailable"] == "temperature: broken"

    def test_row_of_a_sample_from_an_older_release(self) -> None:
        kept: dict[str, Any] = {"cpu": 1.0, "slots": {"total": 8, "held": 3}, "memory": 2.0}
        (row,) = rows([(at(0), Sample(**kept))], ())
        assert (row["pool_vms"], row["pool_primed_vms"]) == (0, 0)
        assert row["temperature_celsius"] is None

    def test_columns_of_one_kind_are_adjacent(self) -> None:
        found = [{"at": 1, "disk[/]": 1, "net[a]": 1}, {"at": 1, "disk[/b]": 1, "net[a]": 1}]
        assert columns_of(found) == ["at", "disk[/]", "disk[/b]", "net[a]"]

    def test_without_vms_removes_vms_and_their_interfaces(self) -> None:
        vm = VmSample(
            vm_id="1",
            slot=2,
            cpu_seconds=None,
            cpu_percent=None,
            memory_bytes=None,
            disk_bytes=None,
            received_bytes=None,
            sent_bytes=None,
        )
        sample = Sample(cpu=1, vm=[vm], rx_bytes={"vm-2": 1, "eth0": 2}, tx_bytes={"vm-2": 1})
        slimmed = without_vms(sample)
        assert (slimmed.vm, slimmed.rx_bytes, slimmed.tx_bytes) == ([], {"eth0": 2}, {})
        assert slimmed.cpu == 1


class TestCsv:
    @pytest.mark.parametrize(
        "text",
        [
            *("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"),
            *(" =1", "\ufeff=1", "\u200b=1", "\uff1d1", "\uff0b1", "\uff0d1", "\uff20SUM(A1)"),
        ],
    )
    def test_csv_text_is_never_a_formula(self, text: str) -> None:
        ((cell,),) = csv.reader(io.StringIO(csv_line([text]), newline=""))
        assert cell == "'" + text

    def test_csv_numbers_and_names_are_unchanged(self) -> None:
        line = csv_line(["disk_percent[/=1]", -1.5, None, 'a "word", more'])
        assert line == 'disk_percent[/=1],-1.5,,"a ""word"", more"\r\n'

    def test_file_name_has_host_and_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("socket.gethostname", lambda: 'h"o/st;1')
        assert file_name(START, "csv") == "polydev-history-h_o_st_1-20261121T100000Z.csv"

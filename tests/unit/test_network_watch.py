"""The network watch's report: reading, and its effect on health and alerts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polydev.controller.host.alert_rules import (
    LASTING,
    Unknown,
    observe_network,
    observe_no_network_report,
)
from polydev.controller.host.network_watch_report import (
    NetworkDifference,
    NoWatchReport,
    declared_check,
    read_report,
    unread_check,
)
from polydev.controller.settings import Sampling
from polydev.hosttool import network_watch
from polydev.processes import run

NOW = 1000.0
OPEN = NetworkDifference("slot-2", "slot-2: vm-2 isolated: off instead of on", True)
SHUT = NetworkDifference("slot-3", "slot-3: tap0 state: down instead of up", False)
DOWN = NetworkDifference("bridge", "bridge: br-vm state: down instead of up", False)


def written(folder: Path, **words: Any) -> Path:
    file = folder / "network.json"
    file.write_text(json.dumps({"at": NOW - 10, "differences": [], **words}))
    return file


class TestReading:
    def test_report_differences_are_read(self, tmp_path: Path) -> None:
        said = [{"part": e.part, "text": e.text, "opens": e.opens} for e in (OPEN, SHUT)]
        file = written(tmp_path, differences=said)
        assert read_report(file, lambda: NOW) == (OPEN, SHUT)

    @pytest.mark.parametrize(
        ("words", "why"),
        [
            ({"at": NOW - 61}, "61 s old"),
            ({"at": NOW + 5}, "-5 s old"),
            ({"error": "cannot read the network: nft: no"}, "cannot read the network: nft: no"),
            ({"differences": None}, "is not a valid report"),
            ({"differences": [{"part": "slot-2"}]}, "is not a valid report"),
            ({"at": "soon"}, "is not a valid report"),
        ],
    )
    def test_outdated_or_failed_report_is_refused(
        self, tmp_path: Path, words: dict[str, Any], why: str
    ) -> None:
        with pytest.raises(NoWatchReport, match=why):
            read_report(written(tmp_path, **words), lambda: NOW)

    @pytest.mark.parametrize("text", ["", "{", "[]", "null"])
    def test_malformed_report_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "network.json").write_text(text)
        with pytest.raises(NoWatchReport, match="is not a valid report"):
            read_report(tmp_path / "network.json", lambda: NOW)

    def test_missing_report_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            read_report(tmp_path / "network.json")


class TestHealth:
    @pytest.mark.parametrize(
        ("found", "status"),
        [
            ((), "healthy"),
            ((SHUT,), "warning"),
            ((SHUT, OPEN), "critical"),
            ((DOWN,), "critical"),
        ],
    )
    def test_check_lists_every_difference(
        self, found: tuple[NetworkDifference, ...], status: str
    ) -> None:
        check = declared_check(found)
        assert check.status == status
        assert all(each.text in check.detail for each in found)
        assert (check.hint is None) == (status == "healthy")

    def test_missing_report_makes_the_check_unknown(self) -> None:
        check = unread_check("no such file")
        assert check.status == "unknown"
        assert "no such file" in check.detail
        assert "polydev-network-watch.service" in str(check.hint)


class TestAlerts:
    def test_open_isolation_is_critical_and_separate_from_breakage(self) -> None:
        seen = observe_network((OPEN, SHUT, DOWN))
        walls, broken = seen["vm_isolation"], seen["vm_network"]
        assert not isinstance(walls, Unknown)
        assert not isinstance(broken, Unknown)
        assert [(e.subject, e.raises, e.message) for e in walls] == [
            ("slot-2", "critical", OPEN.text)
        ]
        assert [(e.subject, e.raises) for e in broken] == [
            ("slot-3", "warning"),
            ("bridge", "critical"),
        ]

    def test_open_isolation_is_reported_within_30_s(self) -> None:
        """The network is compared, then sampled; the alert does not need to last."""
        assert "vm_isolation" not in LASTING
        # The other 10 s are for the comparison and the message.
        assert network_watch.EVERY_SECONDS + Sampling().every_seconds <= 20

    def test_no_differences_clear_standing_alerts(self) -> None:
        assert observe_network(()) == {"vm_isolation": [], "vm_network": []}

    def test_missing_report_raises_an_alert_and_keeps_vm_isolation(self) -> None:
        seen = observe_no_network_report("it is 90 s old")
        assert seen["vm_isolation"] == Unknown("it is 90 s old")
        assert not isinstance(seen["vm_network"], Unknown)
        (found,) = seen["vm_network"]
        assert found.raises == "warning"
        assert "90 s old" in found.message


class Checks:
    """A check of the network that takes some time and some CPU time; the watch ends after two."""

    def __init__(self, seconds: float, cpu_seconds: float) -> None:
        self.seconds, self.cpu_seconds = seconds, cpu_seconds
        self.now, self.used = 0.0, 0.0
        self.reported_at: list[float] = []

    def report(self) -> dict[str, object]:
        self.now += self.seconds
        self.used += self.cpu_seconds
        return {"at": self.now}

    def write(self, report: dict[str, Any]) -> None:
        self.reported_at.append(report["at"])
        if len(self.reported_at) == 2:
            raise KeyboardInterrupt

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(
    ("seconds", "cpu_seconds", "between"),
    [
        pytest.param(0.4, 0.3, 10, id="usual"),
        pytest.param(2, 2, 22, id="many slots"),
        pytest.param(15, 0.3, 18, id="busy host"),
        pytest.param(20, 20, 50, id="many slots of a busy host"),
    ],
)
def test_report_stays_fresh_however_long_a_check_takes(
    monkeypatch: pytest.MonkeyPatch, seconds: float, cpu_seconds: float, between: float
) -> None:
    checks = Checks(seconds, cpu_seconds)
    clock = SimpleNamespace(monotonic=lambda: checks.now, sleep=checks.sleep)
    monkeypatch.setattr(network_watch, "time", clock)
    monkeypatch.setattr(network_watch, "_cpu_seconds", lambda: checks.used)
    monkeypatch.setattr(network_watch, "_report", checks.report)
    monkeypatch.setattr(network_watch, "_write", checks.write)
    with pytest.raises(KeyboardInterrupt):
        network_watch.watch()
    first, second = checks.reported_at
    assert second - first == pytest.approx(between)
    assert second - first < network_watch.FRESH_SECONDS


def test_cpu_time_of_ended_programs_counts() -> None:
    before = network_watch._cpu_seconds()
    run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.2: pass"])
    assert network_watch._cpu_seconds() - before >= 0.15

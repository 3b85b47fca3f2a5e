"""The agent's health answer: how checks, units and facts are combined, and how often they run."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from polydev.agent.announce_ready import MAX_PAUSE_SECONDS, announce_when_ready, pause_seconds
from polydev.agent.errors import CheckFailed
from polydev.agent.health import UNIT_OF, HealthChecks
from polydev.agent.http_messages import HttpRequest
from polydev.agent.reply_types import HealthReply, IndexReply, ProblemReply
from polydev.agent.routes import Routes
from polydev.agent.settings import AgentSettings
from polydev.agent.systemd import Units
from polydev.agent.vm_facts import VmFacts

CHECKED = ("desktop", "vnc", "novnc")
REPLY = TypeAdapter(HealthReply)


def units_in(state: str = "active/running", result: str = "success", **other: str) -> Units:
    """Return all four units in one state, except those given by component."""
    services = {}
    for component, unit in UNIT_OF.items():
        active, _, sub = other.get(component, state).partition("/")
        services[unit] = {"active": active, "sub": sub, "result": result, "restarts": 0}
    failed = sorted(unit for unit, state in services.items() if state["active"] == "failed")
    return Units(services, failed)  # type: ignore[arg-type]


class Guest:
    """A guest of plain values: the results of checks and systemctl, and the time."""

    def __init__(self, proc: Path, keep_seconds: float = 1.0) -> None:
        self.problems: dict[str, Exception] = {}
        self.units: Units | CheckFailed = units_in()
        self.now = 100.0
        self.asked: list[str] = []
        proc.mkdir(exist_ok=True)
        (proc / "uptime").write_text("12.34 0\n")
        (proc / "cmdline").write_text("polydev.image=abc polydev.vm=vm-7 polydev.session=s-9\n")
        self.health = HealthChecks(
            checks={name: self._check(name) for name in CHECKED},
            ask=self._ask,
            facts=lambda: VmFacts(str(proc), str(proc / "identity")),
            keep_seconds=keep_seconds,
            keep_longer={"novnc": 60.0},
            clock=lambda: self.now,
        )

    def _check(self, name: str) -> Callable[[], str]:
        def check() -> str:
            self.asked.append(name)
            if name in self.problems:
                raise self.problems[name]
            return f"{name} works"

        return check

    def _ask(self) -> Units:
        self.asked.append("systemctl")
        if isinstance(self.units, CheckFailed):
            raise self.units
        return self.units


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path / "proc")


def test_guest_without_problems_is_ready(guest: Guest) -> None:
    report = guest.health.report()
    assert REPLY.validate_json(json.dumps(report)) == report
    assert report["status"] == "ready"
    assert report["stage"] == "ready"
    assert report["failing"] == []
    assert list(report["components"]) == ["desktop", "vnc", "novnc", "browser"]
    assert report["components"]["vnc"] == {"ok": True, "detail": "vnc works"}
    assert report["components"]["browser"]["detail"] == (
        "polydev-browser.service is active/running"
    )
    assert (report["image_digest"], report["vm_id"]) == ("abc", "vm-7")
    assert report["session_id"] == "s-9"
    assert report["uptime_seconds"] == 12.34


@pytest.mark.parametrize("name", CHECKED)
def test_failed_check_is_reported_with_cause_and_unit(guest: Guest, name: str) -> None:
    guest.problems[name] = CheckFailed("connection refused")
    guest.units = units_in(**{name: "inactive/dead"})
    report = guest.health.report()
    assert (report["status"], report["failing"]) == ("starting", [name])
    assert report["components"][name] == {
        "ok": False,
        "detail": f"connection refused (polydev-{name}.service is inactive/dead)",
    }


@pytest.mark.parametrize("name", ["desktop", "browser"])
def test_desktop_and_browser_need_an_active_unit(guest: Guest, name: str) -> None:
    guest.units = units_in(**{name: "activating/start-post"})
    report = guest.health.report()
    assert (report["status"], report["failing"]) == ("starting", [name])
    assert report["components"][name]["detail"] == (
        f"polydev-{name}.service is activating/start-post"
    )


@pytest.mark.parametrize("name", ["vnc", "novnc"])
def test_vnc_and_novnc_need_no_active_unit(guest: Guest, name: str) -> None:
    guest.units = units_in(**{name: "activating/start-post"})
    assert guest.health.report()["status"] == "ready"


def test_failed_unit_makes_the_guest_failed(guest: Guest) -> None:
    guest.units = units_in(browser="failed/failed")
    report = guest.health.report()
    assert report["status"] == "failed"
    assert report["failed_units"] == ["polydev-browser.service"]


def test_browser_crash_loop_fails_the_boot_but_not_a_ready_guest(
    guest: Guest,
) -> None:
    again = units_in(browser="activating/auto-restart")
    again.services["polydev-browser.service"]["restarts"] = 4
    guest.units = again
    assert guest.health.report()["status"] == "failed"
    guest.units, guest.now = units_in(), 200.0
    assert guest.health.report()["status"] == "ready"
    # After the boot the user closes the browser, and it starts again each time.
    guest.units, guest.now = again, 300.0
    assert guest.health.report()["status"] == "starting"


def test_guest_without_systemctl_is_not_ready(guest: Guest) -> None:
    guest.units = CheckFailed("systemctl did not end within 4 s")
    report = guest.health.report()
    assert (report["status"], report["failing"]) == ("starting", ["desktop", "browser"])
    assert report["components"]["browser"]["detail"] == "systemctl did not end within 4 s"
    assert report["services"]["polydev-vnc.service"]["active"] == "unknown"


def test_exception_in_a_check_fails_the_check(guest: Guest) -> None:
    guest.problems["vnc"] = ZeroDivisionError("by zero")
    detail = guest.health.report()["components"]["vnc"]["detail"]
    assert detail.startswith("the check itself failed: ZeroDivisionError('by zero')")


def test_good_results_are_cached_for_a_while(guest: Guest) -> None:
    guest.health.report()
    guest.asked.clear()
    guest.now += 0.9
    guest.health.report()
    assert guest.asked == []
    guest.now += 0.1
    guest.health.report()
    assert sorted(guest.asked) == ["desktop", "systemctl", "vnc"]
    guest.asked.clear()
    guest.now += 59
    guest.health.report()
    assert sorted(guest.asked) == ["desktop", "novnc", "systemctl", "vnc"]


def test_bad_results_are_not_cached(guest: Guest) -> None:
    guest.problems["novnc"] = CheckFailed("no page")
    guest.health.report()
    guest.asked.clear()
    guest.problems.clear()
    assert guest.health.report()["status"] == "ready"
    assert guest.asked == ["novnc"]


class ObservedLock:
    """A lock that counts its callers before they wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.arrived = threading.Semaphore(0)

    def __enter__(self) -> None:
        self.arrived.release()
        self._lock.acquire()

    def __exit__(self, *_exception: object) -> None:
        self._lock.release()


def test_concurrent_reports_share_one_run(guest: Guest) -> None:
    lock = ObservedLock()
    guest.health._flight = lock  # type: ignore[assignment]
    guest.problems["vnc"] = CheckFailed("down")  # bad outcomes are not kept
    gate, entered = threading.Event(), threading.Event()
    plain_ask = guest.health._ask

    def slow_ask() -> Units:
        entered.set()
        assert gate.wait(60)
        return plain_ask()

    guest.health._ask = slow_ask
    with ThreadPoolExecutor(6) as pool:
        reports = [pool.submit(guest.health.report)]
        assert entered.wait(60)
        reports += [pool.submit(guest.health.report) for _ in range(5)]
        for _ in range(6):
            assert lock.arrived.acquire(timeout=60)
        gate.set()
        assert len({id(report.result(60)) for report in reports}) == 1
    assert guest.asked.count("vnc") == 1
    guest.health.report()
    assert guest.asked.count("vnc") == 2


def test_watch_runs_cheap_checks_first(guest: Guest) -> None:
    guest.problems["vnc"] = CheckFailed("down")
    assert not guest.health.may_be_ready()
    assert sorted(guest.asked) == ["desktop", "vnc"]
    guest.problems.clear()
    guest.units = units_in(browser="activating/start")
    guest.asked.clear()
    assert not guest.health.may_be_ready()
    assert guest.asked == ["vnc", "systemctl"]
    guest.units = units_in()
    guest.now += 1
    assert guest.health.may_be_ready()
    assert "novnc" not in guest.asked


def settings_in(tmp_path: Path) -> AgentSettings:
    console = tmp_path / "console"
    console.touch()
    return AgentSettings(
        proc=str(tmp_path / "proc"),
        console=str(console),
        logins_socket=str(tmp_path / "logins"),
        watch_pause_seconds=0.0,
    )


@pytest.fixture
def login_server(tmp_path: Path) -> Iterator[socket.socket]:
    """Where systemd would start the program that starts logins."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "logins"))
        listening.listen()
        listening.settimeout(60)
        yield listening


def test_watch_announces_the_agent_then_readiness_once(
    guest: Guest, tmp_path: Path, login_server: socket.socket
) -> None:
    settings = settings_in(tmp_path)
    logged: list[str] = []
    announce_when_ready(guest.health, settings, logged.append)
    guest.health.report()
    with login_server.accept()[0] as asked:
        assert asked.recv(1) == b"", "a connection starts the program, and asks it for nothing"
    assert Path(settings.console).read_text().splitlines() == [
        "polydev: agent answers after 12.34 s",
        "polydev: ready after 12.34 s",
    ]
    assert logged == []


def test_watch_ends_once_a_request_found_the_guest_ready(guest: Guest, tmp_path: Path) -> None:
    guest.health.report()
    guest.asked.clear()
    announce_when_ready(guest.health, settings_in(tmp_path), print)
    assert guest.asked == []


def test_unwritable_console_is_logged(guest: Guest, tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    Path(settings.console).unlink()
    Path(settings.console).mkdir()
    logged: list[str] = []
    announce_when_ready(guest.health, settings, logged.append)
    assert [line.rpartition(": ")[2] for line in logged] == [
        "agent answers after 12.34 s",
        "ready after 12.34 s",
        f"there is no {settings.logins_socket}",
    ]
    assert logged[-1].startswith("logins cannot be started: ")


def test_watch_pause_grows_with_the_check_time_up_to_a_limit() -> None:
    assert pause_seconds(1.0, 0.0) == 1.0
    assert pause_seconds(1.0, 0.5) == 2.5
    assert pause_seconds(1.0, 60.0) == MAX_PAUSE_SECONDS


def routes(guest: Guest) -> Routes:
    return Routes(guest.health, AgentSettings())


def test_health_is_200_only_when_ready(guest: Guest) -> None:
    assert routes(guest)(HttpRequest("GET", "/health")).status == 200
    guest.units = units_in(browser="activating/start")
    guest.now += 1
    reply = routes(guest)(HttpRequest("GET", "/health"))
    assert (reply.status, reply.note) == (503, "starting, failing: browser")
    assert REPLY.validate_json(reply.body)["failing"] == ["browser"]


def test_index_lists_the_paths(guest: Guest) -> None:
    index = TypeAdapter(IndexReply).validate_json(routes(guest)(HttpRequest("HEAD", "/")).body)
    assert {"/", "/health", "/metrics", "/login/{provider}"} <= set(index["paths"])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "*", 404), ("POST", "/health", 405), ("BREW", "/x", 405)],
)
def test_unknown_paths_and_methods_are_refused(
    guest: Guest, method: str, path: str, status: int
) -> None:
    reply = routes(guest)(HttpRequest(method, path))
    assert reply.status == status
    assert TypeAdapter(ProblemReply).validate_json(reply.body)["status"] == status
    assert reply.headers == ({"Allow": "GET, HEAD"} if status == 405 else {})
    assert json.loads(reply.body)["detail"] == reply.note


def test_metrics_contain_the_health_values(guest: Guest, tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    (proc / "meminfo").write_text("MemTotal: 1024 kB\nMemAvailable: 512 kB\nHugePages_Total: 0\n")
    (proc / "loadavg").write_text("0.50 0.25 0.10 1/99 1234\n")
    guest.units = units_in(browser="activating/start")
    reply = Routes(guest.health, AgentSettings(proc=str(proc)))(HttpRequest("GET", "/metrics"))
    assert (reply.status, reply.content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert set(reply.body.decode().splitlines()) >= {
        "polydev_agent_up 1.0",
        'polydev_boot_stage{polydev_boot_stage="network"} 1.0',
        'polydev_boot_stage{polydev_boot_stage="ready"} 0.0',
        'polydev_component_up{component="vnc"} 1.0',
        'polydev_component_up{component="browser"} 0.0',
        'polydev_service_active{unit="polydev-vnc.service"} 1.0',
        'polydev_service_active{unit="polydev-browser.service"} 0.0',
        "polydev_uptime_seconds 12.34",
        "polydev_memory_total_bytes 1.048576e+06",
        "polydev_memory_available_bytes 524288.0",
        'polydev_load_average{minutes="5"} 0.25',
        'polydev_image_info{digest="abc",vm="vm-7"} 1.0',
    }


def test_metrics_without_prometheus_client_name_the_package(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.setattr("sys.path", [])
    reply = routes(guest)(HttpRequest("GET", "/metrics"))
    assert reply.status == 503
    assert b"python3-prometheus-client" in reply.body

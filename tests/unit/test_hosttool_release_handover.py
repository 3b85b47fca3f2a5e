"""The handover of the controller from one release to another, and every way in which it fails."""

from __future__ import annotations

import json
import os

import pytest

from polydev.hosttool.errors import HostError
from polydev.hosttool.log_error_line import failing_line
from polydev.hosttool.release_handover import Handover
from polydev.hosttool.systemd import UnitTimeouts, log_messages
from polydev.hosttool.units import MAIN, SOCKET, next_unit
from tests.unit.hosttool_host import NEW, OLD, Host


@pytest.fixture
def host(host: Host) -> Host:
    """The old release serves, the new one is installed."""
    host.release(NEW)
    return host


def hand_over(host: Host, release: str = NEW) -> dict[str, object]:
    return Handover(host.systemd, host.controller.root, UnitTimeouts()).to(release)


def current(host: Host) -> str:
    return os.readlink(host.controller.current)


def failed(host: Host) -> str:
    with pytest.raises(HostError) as failure:
        hand_over(host)
    assert failure.value.code == "handover-failed"
    return failure.value.message


def test_next_serves_before_the_service_stops(host: Host) -> None:
    assert hand_over(host) == {"release": NEW, "was": OLD}
    assert host.systemd.log == [
        f"reset-failed {next_unit(NEW)}",
        f"restart {next_unit(NEW)}",
        f"reset-failed {MAIN}",
        f"restart {MAIN}",
        f"stop {next_unit(NEW)}",
        f"reset-failed {next_unit(NEW)}",
    ]
    assert current(host) == f"releases/{NEW}"


def test_link_changes_between_the_two_starts(host: Host) -> None:
    seen = {}

    def look(verb: str, unit: str) -> bool:
        if verb == "restart":
            seen[unit] = current(host)
        return False

    host.systemd.fails = look
    hand_over(host)
    assert seen == {next_unit(NEW): f"releases/{OLD}", MAIN: f"releases/{NEW}"}


def test_failed_start_of_next_changes_nothing(host: Host) -> None:
    before = host.seen()
    host.systemd.fails = lambda verb, unit: (verb, unit) == ("restart", next_unit(NEW))
    message = failed(host)
    assert message.startswith(f"release {NEW} did not start: error: {NEW} has no database\n")
    assert "The former release still serves." in message
    assert f"starting {NEW}\n" in message
    assert host.seen() == before
    assert not any(MAIN in line for line in host.systemd.log)
    assert next_unit(NEW) not in host.systemd.active


def test_failed_start_of_the_service_goes_back(host: Host) -> None:
    before = host.seen()
    host.systemd.fails = lambda verb, unit: (
        (verb, unit) == ("restart", MAIN) and current(host) == f"releases/{NEW}"
    )
    message = failed(host)
    assert message.startswith(f"release {NEW} did not start: error: {NEW} has no database\n")
    assert "The former release serves again." in message
    assert f"starting {NEW}\n" in message
    assert OLD not in message, "the start of the former release, which follows, is not shown"
    assert host.seen() == before
    assert next_unit(NEW) not in host.systemd.active


def test_next_keeps_running_if_the_service_cannot_start(host: Host) -> None:
    host.systemd.fails = lambda verb, unit: (verb, unit) == ("restart", MAIN)
    assert "did not start either; master-controller-next@" in failed(host)
    assert current(host) == f"releases/{OLD}"
    assert host.systemd.active[next_unit(NEW)] == "active"


def test_unit_that_crashes_after_its_start_counts_as_failed(host: Host) -> None:
    def fall_over(verb: str, unit: str) -> bool:
        if verb == "restart" and unit != MAIN:
            host.systemd.falls_over.add(unit)
        return False

    host.systemd.fails = fall_over
    assert "is activating after its start" in failed(host)
    assert current(host) == f"releases/{OLD}"


def test_first_release_starts_socket_and_service(host: Host) -> None:
    for unit in (MAIN, SOCKET):
        host.systemd.active.pop(unit)
    host.controller.current.unlink()
    assert hand_over(host) == {"release": NEW, "was": None}
    assert host.systemd.log[0] == f"start {SOCKET}"
    assert {MAIN, SOCKET} <= host.systemd.active.keys()


def test_failed_first_release_leaves_no_link(host: Host) -> None:
    host.systemd.active.pop(MAIN)
    host.controller.current.unlink()
    host.systemd.fails = lambda verb, unit: (verb, unit) == ("restart", MAIN)
    assert "No release ran before it." in failed(host)
    assert not os.path.lexists(host.controller.current)
    assert host.systemd.active.get(MAIN) is None


@pytest.mark.parametrize("state", ["active", "failed"])
def test_lost_socket_is_started_before_the_service(host: Host, state: str) -> None:
    host.systemd.lost.add(SOCKET)
    host.systemd.active[SOCKET] = state
    hand_over(host)
    log = host.systemd.log
    assert log.index(f"stop {MAIN}") < log.index(f"start {SOCKET}") < log.index(f"restart {MAIN}")
    assert host.systemd.listens(SOCKET)
    assert current(host) == f"releases/{NEW}"


def test_missing_release_is_refused(host: Host) -> None:
    with pytest.raises(HostError) as refusal:
        hand_over(host, "20250103_000000-cccc3")
    assert refusal.value.code == "release-missing"
    assert host.systemd.log == []


def test_handover_to_the_same_release_restarts_it(host: Host) -> None:
    assert hand_over(host, OLD) == {"release": OLD, "was": OLD}
    assert f"restart {MAIN}" in host.systemd.log


@pytest.mark.parametrize(
    ("lines", "failing"),
    [
        (["a", "error: no database", "next:  make one", "b failed"], "error: no database"),
        (['{"event":"a","level":"info"}', '{"event":"b","level":"error"}', "c"], None),
        (["Traceback (most recent call last):", "OSError: full", "c"], "OSError: full"),
        (["12:00 [info     ] a", "12:01 [error    ] b", "c"], "12:01 [error    ] b"),
        (["a", "killed"], "killed"),
        ([], ""),
    ],
)
def test_failing_line_is_the_line_with_the_error(lines: list[str], failing: str | None) -> None:
    assert failing_line("\n".join(lines)) == (lines[1] if failing is None else failing)


def entry(message: object, invocation: str | None = "new") -> str:
    fields = {"MESSAGE": message, "_SYSTEMD_INVOCATION_ID": invocation}
    return json.dumps({name: value for name, value in fields.items() if value})


def test_log_messages_skip_the_former_run_and_undecodable_entries() -> None:
    journal = [
        entry("the former run ends", "former"),
        entry("begins"),
        entry("exited before journald read this", None),
        entry([0x66, 0xFF]),
        entry(None),
    ]
    wanted = ["begins", "exited before journald read this", "f\N{REPLACEMENT CHARACTER}"]
    assert log_messages("\n".join(journal), without="former") == wanted

"""Plans from the host tool's answers, also on a host with another host tool or none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from polydev.host_setup.host_report import HostReport, HostReportFact, read_host_report
from tests.unit.fake_host import fake_host

TOOL = "/opt/polydev-ai/bin/polydev-host"
FAILED = {"error": "unread", "message": "cannot read: no", "hint": None}


def asked(answer: list[str]) -> HostReport:
    with fake_host({f"{TOOL} look": answer}):
        return read_host_report(TOOL, ["sshd", "accounts"], '{"it\'s": 1}', "127.0.0.1", 4000)


def test_report_command_passes_the_declared_state_on_stdin() -> None:
    command = HostReportFact().command(TOOL, '{"it\'s": 1}')
    assert command.startswith(f"test ! -x {TOOL} || printf %s ")
    assert f"""'{{"it'"'"'s": 1}}' | {TOOL} look""" in command


def test_network_differences_are_grouped_by_part() -> None:
    differences = [
        {"part": "slot-2", "diff": ["- a", "+ b"]},
        {"part": "firewall", "diff": ["- c"]},
        {"part": "kernel", "diff": ["- d"]},
        {"part": "slot-2", "diff": ["- e"]},
    ]
    found = HostReport({"network": {"differences": differences}})
    assert found.network == {"slot-2": ["- a", "+ b", "- e"]}


def test_failed_part_counts_as_a_difference() -> None:
    found = HostReport(dict.fromkeys(("network", "sshd", "accounts", "polkit"), FAILED))
    assert found.network == {"bridge": ["- cannot read: no"]}
    assert found.sshd == ["- sshd: cannot read: no"]
    assert found.accounts == ["- accounts: cannot read: no"]


@pytest.mark.parametrize("part", ["release", "socket", "images", "database"])
def test_failed_part_that_is_always_deployed_is_ignored(part: str) -> None:
    found: Any = HostReport({part: FAILED})
    attribute = {"release": "damage"}.get(part, part)
    assert not getattr(found, attribute)


def test_host_without_the_host_tool_reports_nothing() -> None:
    found = asked([])
    assert (found.network, found.sshd, found.accounts, found.damage) == ({}, [], None, [])


def test_host_tool_of_another_release_logs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    found = asked([json.dumps({"error": "usage", "message": "no such verb", "hint": None})])
    assert found == HostReport()
    assert "host tool is of another release" in caplog.text


def test_report_attributes_hold_the_answers_of_their_parts() -> None:
    said = {"sshd": ["- a"], "accounts": [], "release": {"damage": ["x is missing"]}}
    found = asked([json.dumps(said)])
    assert (found.sshd, found.accounts, found.damage) == (["- a"], [], ["x is missing"])

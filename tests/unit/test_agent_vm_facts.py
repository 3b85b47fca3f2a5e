"""The agent's facts from /proc, and its lines on the console."""

from __future__ import annotations

from pathlib import Path

import pytest

from polydev.agent.settings import AgentSettings, settings_from_arguments
from polydev.agent.vm_facts import (
    VmFacts,
    announce,
    boot_stage,
    has_default_route,
    uptime_seconds,
    value_of,
)

ROUTE_HEAD = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
DEFAULT_ROUTE = "eth0\t00000000\t010010AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
LINK_ROUTE = "eth0\t000010AC\t00000000\t0001\t0\t0\t0\tFCFFFFFF\t0\t0\t0\n"
DOWN_ROUTE = "eth0\t00000000\t010010AC\t0002\t0\t0\t0\t00000000\t0\t0\t0\n"


@pytest.mark.parametrize(
    ("command_line", "vm"),
    [
        ("console=ttyS0 polydev.vm=vm-7 quiet\n", "vm-7"),
        ("polydev.vm=first polydev.vm=second", "second"),
        ("polydev.vm=", None),
        ("xpolydev.vm=vm-7", None),
        ("", None),
    ],
)
def test_the_vm_id_comes_from_the_kernel_command_line(command_line: str, vm: str | None) -> None:
    assert value_of(command_line, "polydev.vm=") == vm


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (ROUTE_HEAD + LINK_ROUTE + DEFAULT_ROUTE, True),
        (ROUTE_HEAD + LINK_ROUTE, False),
        (ROUTE_HEAD + DOWN_ROUTE, False),
        (ROUTE_HEAD, False),
        ("", False),
    ],
)
def test_default_route_must_be_up(table: str, expected: bool) -> None:
    assert has_default_route(table) is expected


def test_boot_stage_follows_route_and_readiness() -> None:
    assert boot_stage(is_ready=False, has_route=False) == "network"
    assert boot_stage(is_ready=False, has_route=True) == "services"
    assert boot_stage(is_ready=True, has_route=True) == "ready"


def test_facts_are_read_from_proc(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "sys/kernel/random").mkdir(parents=True)
    words = "quiet polydev.image=abc polydev.vm=vm-7 polydev.session=s-9\n"
    (tmp_path / "cmdline").write_text(words)
    (tmp_path / "uptime").write_text("12.34 20.00\n")
    (tmp_path / "net/route").write_text(ROUTE_HEAD + DEFAULT_ROUTE)
    (tmp_path / "sys/kernel/random/boot_id").write_text("0b0e\n")
    facts = VmFacts(str(tmp_path), str(tmp_path / "identity"))
    assert (facts.image_digest, facts.vm_id, facts.boot_id) == ("abc", "vm-7", "0b0e")
    assert facts.session_id == "s-9"
    assert facts.uptime_seconds == 12.34
    assert facts.has_route


def test_identity_file_overrides_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "cmdline").write_text("polydev.image=abc polydev.vm=template polydev.session=old\n")
    identity = tmp_path / "identity"
    identity.write_text("polydev.vm=vm-7 polydev.session=\n")
    facts = VmFacts(str(tmp_path), str(identity))
    assert (facts.image_digest, facts.vm_id, facts.session_id) == ("abc", "vm-7", None)


def test_facts_that_cannot_be_read_are_empty(tmp_path: Path) -> None:
    facts = VmFacts(str(tmp_path / "missing"), str(tmp_path / "missing"))
    assert (facts.image_digest, facts.vm_id, facts.boot_id) == (None, None, "")
    assert facts.session_id is None
    assert facts.uptime_seconds == uptime_seconds("") == 0.0
    assert not facts.has_route


def test_announce_appends_one_line(tmp_path: Path) -> None:
    console = tmp_path / "console"
    console.write_text("before\n")
    announce(str(console), "polydev: here")
    assert console.read_text() == "before\npolydev: here\n"


def test_settings_are_parsed_with_the_types_of_their_defaults() -> None:
    settings = settings_from_arguments(["--vnc-port=1234", "--keep-seconds=0", "--proc=/p"])
    assert (settings.vnc_port, settings.keep_seconds, settings.proc) == (1234, 0.0, "/p")
    assert settings.novnc_port == AgentSettings.novnc_port


@pytest.mark.parametrize(
    "argument", ["--nonsense=1", "--vnc-port", "vnc-port=1", "--vnc-port=x", "--__init__=1", ""]
)
def test_malformed_arguments_are_refused(argument: str) -> None:
    with pytest.raises(ValueError, match=r"is not of the form|could not convert|invalid literal"):
        settings_from_arguments([argument])


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="vnc_prot"):
        AgentSettings(vnc_prot=1)

"""The doctor's rules about a host."""

from __future__ import annotations

from typing import Any

import pytest

from polydev.client.doctor_findings import GIB, DoctorFinding, has_problem
from polydev.client.host_checks import (
    clock_finding,
    drift_findings,
    failed_vms_finding,
    gate_findings,
    health_finding,
    host_findings,
    image_finding,
    kvm_finding,
    memory_finding,
    polkit_finding,
    python_finding,
    space_findings,
    system_finding,
    unreachable_finding,
    upstreams_finding,
)
from polydev.client.host_facts import HostFacts
from polydev.client.template_checks import templates_finding
from polydev.errors import DeployError

NOW = 1_800_000_000.0  # 2027-01-15
DISK = {"size": 100 * GIB, "free": 50 * GIB}
TEMPLATE = {"key": "8f" * 32, "imageDigest": "4f1d" * 16, "serves": True, "diskBytes": GIB}
SOUND: dict[str, Any] = {
    "startedAt": NOW + 0.5,
    "endedAt": NOW + 0.9,
    "os": "Debian GNU/Linux 12 (bookworm)",
    "kernel": "6.1.0",
    "architecture": "x86_64",
    "python": [3, 11, 2],
    "host": {"slots": [2, 3, 4, 5], "controllerPort": 4000},
    "config": "slots: [2, 3, 4, 5]\nvm: {memory_mib: 2048, translation_cache_mib: 1024}\n",
    "memoryBytes": 16 * GIB,
    "cpus": 8,
    "disks": {"/": DISK, "/var/lib/firecracker/snapshots/base": DISK, "/var/lib/microvm": DISK},
    "qemu": "QEMU emulator version 7.2.22",
    "accelerator": {"accelerator": "kvm"},
    "golden": {"digest": "4f1d" * 16, "createdAt": "2027-01-10T10:00:00Z"},
    "health": {"ok": True, "checks": [{"name": "units", "ok": True, "detail": "12 active"}]},
    "units": {
        **dict.fromkeys(("polkit.service", "polydev-accelerator.service"), "active"),
        "polydev-templates.socket": "active",
        "polydev-template.service": "inactive",
    },
    "templates": {
        "enabled": True,
        "wanted": "8f" * 32,
        "serving": "8f" * 32,
        "bootsBecause": None,
        "build": {"state": "none", "detail": None},
        "templates": [TEMPLATE],
    },
    "failedVms": [],
    "polkit": {"vm": True, "other": False},
    "controller": {"status": "healthy", "components": {"database": {"status": "healthy"}}},
    "upstreams": {"8.8.8.8": "ok", "8.8.4.4": "ok"},
}


def facts(**changed: Any) -> HostFacts:
    return HostFacts({**SOUND, **changed}, before=NOW, after=NOW + 1.5)


def test_healthy_host_has_no_findings() -> None:
    found = host_findings("host", facts())
    assert [finding for finding in found if finding.state != "ok" or finding.todo] == []


def test_host_without_a_deployment_has_one_problem() -> None:
    found = host_findings("host", facts(host=None, health=None, golden=None))
    assert has_problem(found)
    assert [each.name for each in found if each.state == "problem"] == ["deployment"]


def test_host_without_any_facts_still_gets_findings() -> None:
    nothing = dict.fromkeys(SOUND) | {"startedAt": NOW, "endedAt": NOW, "host": {}}
    found = host_findings("host", HostFacts(nothing, NOW, NOW))
    assert all(finding.todo for finding in found if finding.state != "ok")
    assert has_problem(found)


def test_host_unreachable_over_ssh_is_a_problem() -> None:
    finding = unreachable_finding("host", DeployError("cannot be reached", "ssh host"))
    assert (finding.state, finding.found, finding.todo) == (
        "problem",
        "cannot be reached",
        "ssh host",
    )


@pytest.mark.parametrize(
    ("changed", "state"),
    [
        ({}, "ok"),
        ({"os": "Ubuntu 24.04.1 LTS"}, "ok"),
        ({"os": "Ubuntu 22.04.5 LTS"}, "warning"),
        ({"os": "Fedora Linux 40"}, "warning"),
        ({"architecture": "aarch64"}, "problem"),
    ],
)
def test_system_must_be_a_supported_distribution(changed: Any, state: str) -> None:
    assert system_finding("host", facts(**changed)).state == state


@pytest.mark.parametrize(
    ("version", "state"),
    [([3, 9, 2], "problem"), ([3, 10, 0], "ok"), ([3, 13, 1], "ok"), ([3, 14, 0], "problem")],
)
def test_host_python_version_must_be_supported(version: list[int], state: str) -> None:
    assert python_finding("host", facts(python=version)).state == state


@pytest.mark.parametrize(
    ("started", "ended", "state", "words"),
    [
        (0.5, 0.9, "ok", "agrees"),
        (2.5, 2.9, "ok", "agrees"),  # within 2 s, as far as the call's length lets one say
        (6.0, 6.4, "warning", "5 s ahead of"),
        (-6.0, -5.6, "warning", "6 s behind"),
        (3600.0, 3600.4, "problem", "3,599 s ahead of"),
    ],
)
def test_clock_difference_beyond_the_call_time_is_a_warning(
    started: float, ended: float, state: str, words: str
) -> None:
    finding = clock_finding("host", facts(startedAt=NOW + started, endedAt=NOW + ended))
    assert (finding.state, words in finding.found) == (state, True), finding


def test_slow_call_does_not_cause_a_clock_warning() -> None:
    slow = HostFacts({**SOUND, "startedAt": NOW + 30, "endedAt": NOW + 31}, NOW, NOW + 60)
    assert clock_finding("host", slow).state == "ok"


def test_full_disk_is_named_by_its_use() -> None:
    disks = {**SOUND["disks"], "/var/lib/microvm": {"size": 100 * GIB, "free": GIB}}
    found = space_findings("host", facts(disks=disks))
    assert [each.name for each in found if each.state == "problem"] == ["room for VMs"]


def test_folders_missing_before_a_deployment_are_ignored() -> None:
    assert len(space_findings("host", facts(disks={"/": DISK}))) == 1


def test_each_health_gate_check_is_a_finding() -> None:
    checks = [
        {"name": "units", "ok": False, "detail": "polydev-dns.service is failed"},
        {"name": "slots", "ok": True, "detail": "4 there"},
    ]
    broken, whole = gate_findings("host", facts(health={"ok": False, "checks": checks}))
    assert (broken.state, broken.found) == ("problem", "polydev-dns.service is failed")
    assert "./inv deploy" in str(broken.todo)
    assert (whole.state, whole.todo) == ("ok", None)


@pytest.mark.parametrize(
    ("part", "answer", "words"),
    [
        ("accounts", [], None),
        ("accounts", ["- user polydev-vm-2: sudo /etc/sudoers.d/x"], "polydev-vm-2: sudo"),
        ("database", {"database": "SQLite", "differences": []}, None),
        ("database", {"differences": ["+ index vms_slot_held"]}, "vms_slot_held"),
        ("release", {"damage": ["x.pth does not belong to the release"]}, "x.pth"),
        ("overrides", [], None),
        ("permissions", [], None),
        ("permissions", ["/run/polydev: mode 777 of 0:0"], "/run/polydev: mode 777"),
        ("settings", ["- /etc/sysctl.d/99-x.conf: net.ipv4.ip_forward=0"], "99-x.conf"),
        ("overrides", ["/etc/systemd/system/microvm@4.service"], "microvm@4"),
        ("release", {"error": "unread", "message": "no such file"}, "no such file"),
    ],
)
def test_drift_found_by_the_host_tool_is_a_problem(
    part: str, answer: Any, words: str | None
) -> None:
    (found,) = drift_findings("host", facts(look={part: answer}))
    assert (found.name, found.state) == (part, "problem" if words else "ok")
    assert words is None or words in found.found
    assert bool(found.todo) == bool(words)


def test_older_host_tool_gives_no_drift_findings() -> None:
    assert drift_findings("host", facts(look=None)) == []


def test_silent_host_tool_is_a_problem() -> None:
    (finding,) = gate_findings("host", facts(health=None))
    assert finding.state == "problem"


@pytest.mark.parametrize(
    ("report", "state"),
    [
        ({"status": "healthy", "components": {"imageStore": {"status": "degraded"}}}, "warning"),
        ({"status": "unhealthy", "components": {"database": {"status": "unhealthy"}}}, "problem"),
        ({"status": "no answer at 127.0.0.1:4000: refused"}, "problem"),
        (None, "problem"),
    ],
)
def test_controller_health_report_decides_the_state(report: Any, state: str) -> None:
    assert health_finding("host", facts(controller=report)).state == state


@pytest.mark.parametrize(
    "answer",
    [
        ["- polkit: polydev-vm-2 may reboot", "+ polkit: polydev-vm-2 may not reboot"],
        {"error": "unread", "message": "polydev-vm-2 may reboot"},
    ],
)
def test_polkit_rights_of_vm_users_are_a_problem(answer: Any) -> None:
    found = [each for each in host_findings("host", facts(look={"polkit": answer})) if each.todo]
    assert [(each.name, each.state) for each in found] == [("polkit", "problem")]
    assert "polydev-vm-2 may reboot" in found[0].found


@pytest.mark.parametrize(
    ("polkit", "state"),
    [
        ({"vm": True, "other": False}, "ok"),
        ({"vm": False, "other": False}, "problem"),
        ({"vm": True, "other": True}, "problem"),
        ({"vm": None, "other": None}, "warning"),
    ],
)
def test_polkit_must_allow_vm_units_only(polkit: Any, state: str) -> None:
    assert polkit_finding("host", facts(polkit=polkit)).state == state


@pytest.mark.parametrize(
    ("version", "reads"),
    [
        ("pkcheck version 0.105", False),
        ("pkcheck version 0.106", True),
        ("pkcheck version 122", True),
        (None, True),
    ],
)
def test_polkit_without_javascript_rules_is_named(version: str | None, reads: bool) -> None:
    asked = facts(polkit={"vm": False, "other": False}, polkitVersion=version)
    found = polkit_finding("host", asked)
    assert found.state == "problem"
    assert ("JavaScript" in found.found) is not reads


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"accelerator": {"accelerator": "tcg", "why": "there is no /dev/kvm"}}, "no /dev/kvm"),
        ({"accelerator": {"accelerator": "tcg"}}, "VMs run without"),
        ({"accelerator": None}, "not tried"),
    ],
)
def test_host_without_kvm_is_a_warning(changed: Any, words: str) -> None:
    finding = kvm_finding("host", facts(**changed))
    assert finding.state == "warning"
    assert words in finding.found


def of_templates(**changed: Any) -> HostFacts:
    return facts(templates={**SOUND["templates"], **changed})


@pytest.mark.parametrize("socket", ["inactive", None])
def test_inactive_template_holder_is_a_warning(socket: str | None) -> None:
    units = {**SOUND["units"], "polydev-templates.socket": socket}
    finding = templates_finding("host", facts(units=units))
    assert (finding.state, finding.todo) == ("warning", "./inv deploy")
    assert f"polydev-templates.socket is {socket or 'unknown'}" in finding.found


def test_serving_template_is_named_with_its_disk_space() -> None:
    finding = templates_finding("host", facts())
    assert finding.found == "8f8f8f8f8f8f of the golden image serves; 1 takes 1.0 GiB of disk"


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ({"size": 0, "primed": 0, "detail": "the pool is full"}, None),
        ({"size": 2, "primed": 2, "detail": "the pool is full"}, "2 of 2 VMs of the pool wait for"),
        (
            {"size": 2, "primed": 1, "detail": "another VM is starting"},
            "sessions (another VM is starting)",
        ),
    ],
)
def test_pool_is_shown_with_its_template(pool: dict[str, Any], words: str | None) -> None:
    finding = templates_finding("host", of_templates(pool=pool))
    assert finding.state == "ok"
    assert (words or "of disk") in finding.found
    assert ("pool" in finding.found) == (words is not None)


BOOTS: dict[str, Any] = {"serving": None, "templates": [], "bootsBecause": "it is so"}
OLDER = {"serving": "7e" * 32}


@pytest.mark.parametrize(
    ("changed", "state", "words"),
    [
        (
            {**OLDER, "build": {"state": "running", "detail": "saving"}},
            "ok",
            "making the golden image's template: saving; VMs are resumed from image 4f1d4f1d4f1d",
        ),
        (
            {**OLDER, "build": {"state": "failed", "detail": "a clone of the template ended"}},
            "warning",
            "image's template: a clone of the template ended; "
            "VMs are resumed from image 4f1d4f1d4f1d",
        ),
        (OLDER, "warning", "the golden image has none; VMs are resumed from image 4f1d4f1d4f1d"),
        (BOOTS, "warning", "the golden image has none; VMs boot: it is so"),
        ({**BOOTS, "enabled": False}, "ok", "off: each VM boots"),
    ],
)
def test_fallback_for_a_missing_template_is_shown(
    changed: dict[str, Any], state: str, words: str
) -> None:
    finding = templates_finding("host", of_templates(**changed))
    assert finding.state == state
    assert words in finding.found
    assert (finding.todo is None) == (state == "ok")


def test_release_without_a_template_report_suggests_a_deployment() -> None:
    assert templates_finding("host", facts(templates=None)).todo == "./inv deploy"


@pytest.mark.parametrize(
    ("total", "accelerator", "state"),
    [
        (9 * GIB, "kvm", "ok"),  # a template is held beside the VMs
        (8 * GIB, "kvm", "warning"),
        (9 * GIB, "tcg", "warning"),  # the cache of translated code comes on top
        (13 * GIB, "tcg", "ok"),
        (GIB, "kvm", "problem"),
    ],
)
def test_memory_must_suffice_for_all_slots_and_templates(
    total: int, accelerator: str, state: str
) -> None:
    said = facts(memoryBytes=total, accelerator={"accelerator": accelerator})
    assert memory_finding("host", said).state == state


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, "4 VMs need up to 8.0 GiB of 16.0 GiB, and 1 template 1.0 GiB"),
        ({"templates": [TEMPLATE, TEMPLATE]}, "and 2 templates 2.0 GiB"),
        (BOOTS, "and 1 template 0.7 GiB"),  # there is going to be one
        ({**BOOTS, "enabled": False}, "8.0 GiB of 16.0 GiB"),
    ],
)
def test_memory_finding_includes_templates(changed: dict[str, Any], words: str) -> None:
    assert memory_finding("host", of_templates(**changed)).found.endswith(words)


def test_failed_units_of_vms_are_named() -> None:
    finding = failed_vms_finding("host", facts(failedVms=["microvm@3.service"]))
    assert (finding.state, finding.found) == ("warning", "failed: microvm@3.service")


@pytest.mark.parametrize(
    ("golden", "state"),
    [
        ({"digest": "4f1d", "createdAt": "2026-12-01T10:00:00Z"}, "warning"),
        ({"digest": "4f1d", "createdAt": "2026-01-01T10:00:00Z"}, "problem"),
        ({"digest": "4f1d", "createdAt": None}, "warning"),
        (None, "problem"),
    ],
)
def test_golden_image_must_exist_and_be_recent(golden: Any, state: str) -> None:
    assert image_finding("host", facts(golden=golden)).state == state


@pytest.mark.parametrize(
    ("upstreams", "state"),
    [
        ({"8.8.8.8": "ok", "8.8.4.4": "timed out"}, "warning"),
        ({"8.8.8.8": "timed out"}, "problem"),
        ({"8.8.8.8": "answers, but not for debian.org (code 3)"}, "warning"),
        ({}, "problem"),
    ],
)
def test_silent_resolvers_are_named(upstreams: Any, state: str) -> None:
    finding = upstreams_finding("host", facts(upstreams=upstreams))
    assert finding.state == state
    assert all(address in finding.found for address, said in upstreams.items() if said != "ok")


def test_unreadable_configuration_is_tolerated() -> None:
    assert facts(config="{").config == {}
    assert memory_finding("host", facts(config=None)).found.startswith("4 VMs")


def test_long_finding_is_shortened_as_text_but_not_in_json() -> None:
    few, many = "; ".join("abcde"), "; ".join("abcdefg")
    assert DoctorFinding("h", "files", "problem", few).summary == few
    finding = DoctorFinding("h", "files", "problem", many)
    assert finding.summary == "a; b; c; d; e; and 2 more, which --json shows"
    assert finding.as_dict()["found"] == many

"""The doctor: its probe as a host runs it, on a healthy lab and on one with problems."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from polydev.client import host_probe
from polydev.client.doctor_findings import DoctorFinding
from polydev.client.host_checks import host_findings
from polydev.client.host_facts import gather
from polydev.client.operator_machine_checks import gather as look_here
from polydev.client.operator_machine_checks import machine_findings
from polydev.errors import DeployError
from polydev.image.store import ImageStore
from polydev.image_layout import KERNEL
from polydev.image_record import ImageRecord
from polydev.processes import run
from polydev.settings import Settings
from tests.hosts import DeployedHost

TRIES = 5


def findings(host: DeployedHost) -> dict[str, DoctorFinding]:
    target = host.host.target
    return {each.name: each for each in host_findings(target.name, gather(target))}


def test_host_probe_needs_only_python() -> None:
    script = Path(host_probe.__file__).read_text()
    said = json.loads(run([sys.executable, "-I", "-S", "-"], input=script).stdout)
    assert said["startedAt"] <= said["endedAt"]
    assert said["memoryBytes"] > 0
    assert said["disks"]["/"]["size"] > said["disks"]["/"]["free"] > 0


def test_machine_facts_with_a_kernel_to_boot(
    settings: Settings, store: ImageStore, image: ImageRecord
) -> None:
    kernel = store.path(image.digest) / KERNEL
    facts = look_here(settings, ["git", "no-such-package"], kernel)
    assert facts.packages is not None
    assert facts.packages["git"]
    assert facts.packages["no-such-package"] is None
    assert facts.accelerator in ("kvm", "tcg")
    assert facts.qemu
    # Leftovers of earlier runs on this machine do not matter here.
    names = [each.name for each in machine_findings(facts) if each.name != "leftovers"]
    assert len(names) == len(set(names)) == 7


def test_deployed_host_has_no_problem(deployed: DeployedHost) -> None:
    for _ in range(TRIES):  # a busy host may answer one of the checks late
        # The host cannot help it if internet names are not resolved here.
        found = {name: each for name, each in findings(deployed).items() if "resolvers" not in name}
        problems = [each for each in found.values() if each.state == "problem"]
        if not problems:
            break
    assert problems == []
    assert found["polkit"].state == "ok"
    assert found["clock"].state == "ok"
    assert "not tried" not in found["KVM"].found


def test_stopped_dns_unit_is_found_with_next_step(deployed: DeployedHost) -> None:
    deployed.inside("systemctl stop polydev-dns.service")
    try:
        found = findings(deployed)
        assert found["units"].found == "polydev-dns.service is inactive"
        assert found["names"].state == "problem"
        assert "polydev-dns.service" in str(found["names"].todo)
    finally:
        deployed.inside("systemctl start polydev-dns.service")


def test_doctor_changes_nothing_on_the_host(deployed: DeployedHost) -> None:
    before = deployed.listing()
    gather(deployed.host.target)
    assert deployed.listing() == before


def test_unreachable_host_is_reported(deployed: DeployedHost) -> None:
    nobody = replace(deployed.host.target, port=1)
    with pytest.raises(DeployError, match="cannot be reached over SSH"):
        gather(nobody)
